import { parseArgs } from 'node:util';

// Asks a running service. Tables on a terminal, JSON lines in a pipe; exit code 0 done, 1 refused or unreachable, 2 usage.

const USAGE = `Usage: npm run colloquy -- sweep [--dry-run] [--limit <n>] [--url <url>] [--key <key>]

  sweep            sweep now: expire, end dead generations, delete what is to be deleted
  sweep --dry-run  list what a sweep would do, and why; changes nothing

  --url   of the service; default COLLOQUY_URL or http://127.0.0.1:3000
  --key   an operator's API key; default COLLOQUY_API_KEY
`;

const options = {
  'dry-run': { type: 'boolean', default: false },
  limit: { type: 'string', default: '1000' },
  url: { type: 'string', default: process.env.COLLOQUY_URL ?? 'http://127.0.0.1:3000' },
  key: { type: 'string', default: process.env.COLLOQUY_API_KEY ?? '' },
};

function read() {
  try {
    const { values, positionals } = parseArgs({ options, allowPositionals: true });
    if (positionals.length === 1 && positionals[0] === 'sweep') return values;
  } catch (error) {
    console.error(error.message);
  }
  console.error(USAGE);
  process.exit(2);
}

async function ask(method, path, { url, key }) {
  try {
    const response = await fetch(url.replace(/\/+$/, '') + path, {
      method,
      headers: key === '' ? {} : { authorization: `Bearer ${key}` },
    });
    const body = await response.json();
    if (response.ok) return body;
    console.error(`${body.code}: ${body.detail}`);
  } catch (error) {
    console.error(`${url} cannot be reached: ${error.cause?.message ?? error.message}`);
  }
  process.exit(1);
}

function print(rows) {
  if (process.stdout.isTTY) console.table(rows);
  else for (const row of rows) console.log(JSON.stringify(row));
}

const values = read();
if (values['dry-run']) {
  const { dryRun } = await ask('GET', `/v1/admin/sweep?dryRun=true&limit=${values.limit}`, values);
  print(dryRun.actions);
  if (!dryRun.isComplete) console.error(`There is more than this: --limit is ${values.limit}.`);
} else {
  const { found, swept } = await ask('POST', '/v1/admin/sweep', values);
  print(Object.keys(found).map((reason) => ({ reason, found: found[reason], swept: swept[reason] })));
}
