import { parseArgs } from 'node:util';
import { plant, PLANTED } from './planted.js';
import { run, type Report } from './run.js';

/* The program behind `npm run chaos`. */

/** How long a planted fault may stay hidden. */
const FOUND_WITHIN_S = 300;

async function main(): Promise<void> {
  const { values } = parseArgs({
    options: {
      seconds: { type: 'string', default: '60' },
      seed: { type: 'string', default: '1' },
      nodes: { type: 'string', default: '2' },
      // The name of a fault, or `all`: each has to be found.
      planted: { type: 'string' },
    },
  });
  const options = { seconds: Number(values.seconds), seed: Number(values.seed), nodes: Number(values.nodes) };
  if (values.planted === undefined) {
    const report = await run({ ...options, say: console.log });
    tell(report);
    console.log(report.violations.length === 0 ? 'everything holds' : `VIOLATED (seed ${options.seed})`);
    process.exitCode = report.violations.length === 0 ? 0 : 1;
    return;
  }
  const names = Object.keys(PLANTED) as (keyof typeof PLANTED)[];
  const wanted = names.filter((name) => values.planted === 'all' || name === values.planted);
  if (wanted.length === 0) {
    console.error(`There is no such fault. There are: all; ${names.join('; ')}`);
    process.exitCode = 2;
    return;
  }
  for (const name of wanted) if (!(await isFound(name, options))) process.exitCode = 1;
}

/** Runs a build with a fault, with one seed after the other, until the checker finds something. */
async function isFound(
  name: keyof typeof PLANTED,
  { seconds, seed, nodes }: { seconds: number; seed: number; nodes: number },
): Promise<boolean> {
  const { main, sql, remove } = await plant(name);
  try {
    for (let n = 0; n * seconds < FOUND_WITHIN_S; n += 1) {
      const { violations } = await run({
        ...{ seconds, seed: seed + n, nodes, main, say: () => undefined },
        ...(sql !== undefined && { sql }),
      });
      const properties = [...new Set(violations.map(({ property }) => property))];
      if (properties.length > 0) {
        console.log(`FOUND within ${(n + 1) * seconds} s: ${name}: ${properties.join('; ')}`);
        return true;
      }
    }
    console.log(`NOT FOUND within ${FOUND_WITHIN_S} s: ${name}`);
    return false;
  } finally {
    await remove();
  }
}

function tell({ violations, ...counts }: Report): void {
  console.log(JSON.stringify(counts, null, 2));
  for (const { property, detail } of violations) console.log(`VIOLATED: ${property}: ${detail}`);
}

void main();
