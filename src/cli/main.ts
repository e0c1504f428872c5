#!/usr/bin/env node
import { Command, CommanderError, InvalidArgumentError, Option } from 'commander';
import { type MovedTenant } from '../cells/tenant-move.js';
import { type ApiKey } from '../access/keys.schemas.js';
import { type NotaryKey } from '../proof/notary-keys.js';
import { type LogRange } from '../event-store/log-ranges.js';
import { ColloquyError, type Connection } from '../client/connection.js';
import { version } from '../version.js';
import { type Column, isReaderGone, print, progressBar, write } from './output.js';
import { type TokenOptions } from './access.js';
import { connectionOf, followed, listed, type Query, queryOf, type ServiceOptions } from './service.js';
import { type ImportOptions } from './transfer.js';

/*
 * Tables on a terminal, JSON lines in a pipe. Exit code 0 done, 1 refused, unreachable or different, 2 usage.
 * `export`, `import`, `audit-log`, `migrate`, `grant`, `keys`, `master-key`, `notary`, `ranges`, `relay`, `recover`,
 * `tenants` and `cells drain` work on the database itself, `data` and `verify-export` on files, everything else but
 * `token` asks a running service.
 */

interface EventRow {
  readonly time: string;
  readonly sessionId: string;
  readonly version: number;
  readonly type: string;
  readonly actor: string;
  readonly data: unknown;
}
interface MessageRow {
  readonly version: number;
  readonly createdAt: string;
  readonly role: string;
  readonly content: unknown;
}
interface SearchRow {
  readonly createdAt: string;
  readonly sessionId: string;
  readonly version: number;
  readonly role: string;
  readonly snippet: readonly { readonly text: string }[];
}
interface ProjectionRow {
  readonly name: string;
  readonly version: number;
  readonly status: string;
  readonly behind: number;
  readonly parked: number;
  readonly rebuild: { readonly processed: number; readonly total: number } | null;
}
interface VerifiedRow {
  readonly name: string;
  readonly ok: boolean;
  readonly rows: number;
  readonly hash: string;
  readonly firstDifference: { readonly tenant: string; readonly sessionId: string } | null;
}
interface ExportCommand {
  readonly session?: string[];
  readonly format: 'events' | 'openai';
  readonly proof?: boolean;
}
interface SweepRow {
  readonly reason: string;
  readonly found: number | undefined;
  readonly swept: number | undefined;
}

/** A column for a field of the rows. */
const column = <Row>(title: keyof Row & string): Column<Row> => ({ title, of: (row) => row[title] });
const columns = <Row>(...titles: (keyof Row & string)[]): Column<Row>[] =>
  titles.map((title) => column(title));

const EVENT = columns<EventRow>('time', 'sessionId', 'version', 'type', 'actor', 'data');
const PROJECTION: Column<ProjectionRow>[] = [
  ...columns<ProjectionRow>('name', 'version', 'status', 'behind', 'parked'),
  { title: 'rebuild', of: ({ rebuild }) => rebuild && `${rebuild.processed} of ${rebuild.total}` },
];

function wholeNumber(text: string): number {
  if (!/^[1-9]\d{0,8}$/.test(text)) throw new InvalidArgumentError('It must be a whole number from 1.');
  return Number(text);
}

const program = new Command('colloquy')
  .description('Asks a running Colloquy; brings sessions out of a database and into one; says who may call.')
  .version(version)
  .addOption(new Option('--url <url>', 'of the service').env('COLLOQUY_URL').default('http://127.0.0.1:3000'))
  // Not shown in the help: commander would print the key that the environment holds.
  .addOption(new Option('--key <key>', 'an API key (env: COLLOQUY_API_KEY)'))
  .option('--tenant <tenant>', 'whose sessions; for operators, and where no key is needed')
  .option('--cell <cell>', 'of several cells, the one that is meant')
  .exitOverride();

const service = (): ServiceOptions => {
  const { COLLOQUY_API_KEY } = process.env;
  return { ...(COLLOQUY_API_KEY && { key: COLLOQUY_API_KEY }), ...program.opts<ServiceOptions>() };
};
const connect = () => connectionOf(service());
const pathOf = (...parts: readonly string[]): string =>
  parts.map((part) => `/${encodeURIComponent(part)}`).join('');

interface CellRow {
  readonly name: string;
  readonly weight: number;
  readonly tenants: number;
  readonly status: string;
}
const readCells = async (): Promise<CellRow[]> =>
  (await connect().json<{ data: CellRow[] }>('GET', '/v1/admin/cells')).data;

/** A service that is older than cells has one. */
function noneKnown(error: unknown): CellRow[] {
  if (error instanceof ColloquyError && error.status === 404) return [];
  throw error;
}

/**
 * Asks each cell, or the one that is named, and prints all rows, with their cell where there are several. A cell that
 * does not answer is told, and the exit code is 1.
 */
async function printOfCells<Row>(
  work: (connection: Connection) => Promise<readonly Row[]>,
  shown: readonly Column<Row>[],
): Promise<Row[]> {
  const asked = service();
  const cells = asked.cell === undefined ? await readCells().catch(noneKnown) : [];
  if (cells.length <= 1) {
    const rows = await work(connect());
    await print(rows, shown);
    return [...rows];
  }
  const rows: { readonly cell: string; readonly row: Row }[] = [];
  for (const { name: cell } of cells) {
    try {
      rows.push(...(await work(connectionOf({ ...asked, cell }))).map((row) => ({ cell, row })));
    } catch (error) {
      if (!(error instanceof ColloquyError)) throw error;
      process.stderr.write(`${cell}: ${error.message}\n`);
      process.exitCode = 1;
    }
  }
  await print(
    rows.map(({ cell, row }) => ({ cell, ...row })),
    [{ title: 'cell', of: ({ cell }) => cell }, ...shown],
  );
  return rows.map(({ row }) => row);
}

interface FeedOptions {
  readonly session?: string;
  readonly type?: string;
  readonly actor?: string;
  readonly from?: string;
  readonly to?: string;
  readonly after?: string;
  readonly limit: number;
}

const feed = (name: string): Command =>
  program
    .command(name)
    .option('--session <id>', 'of this session')
    .option('--type <type>', 'of this type, e.g. MessageAppended')
    .option('--actor <name>', 'caused by this actor')
    .option('--after <cursor>', 'after this place in the feed');

feed('events')
  .description('list the events of a tenant')
  .option('--from <time>', 'not before this time (RFC 3339)')
  .option('--to <time>', 'before this time (RFC 3339)')
  .option('--limit <n>', 'at most so many', wholeNumber, 100)
  .action(async ({ limit, ...query }: FeedOptions) => {
    for await (const page of listed<EventRow>(connect(), '/v1/events', query, limit, 'after')) {
      await print(page, EVENT);
    }
  });

const endOfFeed = async (): Promise<string> =>
  (await connect().json<{ cursor: string }>('GET', '/v1/events?after=end&limit=1')).cursor;

feed('tail')
  .description('follow the events of a tenant as they happen, through lost connections')
  .option('--limit <n>', 'end after so many', wholeNumber, Infinity)
  .action(async ({ limit, ...query }: FeedOptions) => {
    let left = limit;
    // "From now on" must mean the same place after a lost connection, even if no event has come before.
    const { after = await endOfFeed() } = query;
    const lost = (error: Error): void => {
      process.stderr.write(`${error.message}; trying again\n`);
    };
    for await (const event of followed<EventRow>(
      connect(),
      `/v1/events${queryOf({ ...query, after })}`,
      lost,
    )) {
      await print([event], EVENT, false);
      left -= 1;
      if (left <= 0) return;
    }
  });

program
  .command('history <session>')
  .description("list a session's messages, now or at any moment")
  .option('--at <moment>', 'a version, or an RFC 3339 time')
  .option('--incarnation <n>', 'an earlier life of the id', wholeNumber)
  .option('--limit <n>', 'at most so many', wholeNumber, Infinity)
  .action(async (session: string, { limit, ...query }: Query & { limit: number }) => {
    const path = `/v1/sessions${pathOf(session, 'messages')}`;
    for await (const page of listed<MessageRow>(connect(), path, query, limit, 'cursor')) {
      await print(page, columns<MessageRow>('version', 'createdAt', 'role', 'content'));
    }
  });

program
  .command('search <text>')
  .description('find messages that contain words or "phrases", the newest first')
  .option('--role <role>', 'user, assistant, system or tool')
  .option('--from <time>', 'of this time or later')
  .option('--to <time>', 'before this time')
  .option('--limit <n>', 'at most so many', wholeNumber, 50)
  .action(async (q: string, { limit, ...query }: Query & { limit: number }) => {
    for await (const page of listed<SearchRow>(connect(), '/v1/search', { q, ...query }, limit, 'cursor')) {
      const rows = page.map(({ snippet, ...hit }) => ({
        ...hit,
        text: snippet.map(({ text }) => text).join(''),
      }));
      await print(rows, columns<(typeof rows)[number]>('createdAt', 'sessionId', 'version', 'role', 'text'));
    }
  });

program
  .command('fork <session>')
  .description('make a session that begins with the history of another')
  .option('--at <moment>', 'up to a version, or an RFC 3339 time')
  .option('--id <id>', 'of the new session')
  .action(async (session: string, { at, id }: { at?: string; id?: string }) => {
    const body = {
      ...(at !== undefined && { at: /^\d+$/.test(at) ? Number(at) : at }),
      ...(id !== undefined && { id }),
    };
    const forked = await connect().json<{ id: string; messageCount: number; version: number }>(
      'POST',
      `/v1/sessions${pathOf(session, 'fork')}`,
      { body },
    );
    await print([forked], columns<typeof forked>('id', 'messageCount', 'version'));
  });

const readProjections = async (connection: Connection): Promise<ProjectionRow[]> =>
  (await connection.json<{ data: ProjectionRow[] }>('GET', '/v1/admin/projections')).data;

interface ErasureRow {
  readonly sessionId: string;
  /** There when it is scheduled only. */
  readonly at?: string;
  readonly reason?: string;
  readonly erasedAt: string;
  readonly version: number;
  readonly keys: readonly string[];
  readonly forks: readonly string[];
}
program
  .command('erase <session>')
  .description('make unreadable, for ever, what was said in a session; it cannot be undone')
  .option('--at <time>', 'at this RFC 3339 time to come, until which it can be called off')
  .addOption(new Option('--cancel', 'call off what is scheduled').conflicts('at'))
  .option('--reason <reason>', 'is kept, and must name nobody')
  .action(async (id: string, { cancel, ...body }: { at?: string; cancel?: boolean; reason?: string }) => {
    if (cancel) {
      await connect().json('DELETE', `/v1/sessions${pathOf(id, 'erasure')}`, { body });
      return;
    }
    const done = await connect().json<ErasureRow>('POST', `/v1/sessions${pathOf(id, 'erase')}`, { body });
    await print(
      [done],
      done.at === undefined
        ? columns<ErasureRow>('sessionId', 'erasedAt', 'version', 'keys', 'forks')
        : columns<ErasureRow>('sessionId', 'at', 'reason'),
    );
  });

program
  .command('projections')
  .description('list the read models and how far they are')
  .action(async () => {
    await printOfCells(readProjections, PROJECTION);
  });

const POLL_MS = 500;

program
  .command('rebuild <projection>')
  .description('make a read model anew from the log, while it goes on serving')
  .option('--no-wait', 'return as soon as it has begun')
  .action(async (name: string, { wait }: { wait: boolean }) => {
    let row: ProjectionRow | undefined = await connect().json<ProjectionRow>(
      'POST',
      `/v1/admin/projections${pathOf(name, 'rebuild')}`,
    );
    const bar = progressBar('events');
    try {
      while (wait && row?.rebuild) {
        bar.update(row.rebuild.processed, row.rebuild.total);
        await new Promise((resolve) => setTimeout(resolve, POLL_MS));
        row = (await readProjections(connect())).find((one) => one.name === name);
      }
    } finally {
      bar.stop();
    }
    await print(row ? [row] : [], PROJECTION);
  });

program
  .command('verify [projection]')
  .description('hold a read model, or all of them, against the log; exit code 1 when one differs')
  .action(async (name?: string) => {
    const verified = async (connection: Connection): Promise<VerifiedRow[]> => {
      const names = name === undefined ? (await readProjections(connection)).map((row) => row.name) : [name];
      const all: VerifiedRow[] = [];
      for (const one of names)
        all.push(await connection.json('POST', `/v1/admin/projections${pathOf(one, 'verify')}`));
      return all;
    };
    const rows = await printOfCells(verified, [
      ...columns<VerifiedRow>('name', 'ok', 'rows', 'hash'),
      {
        title: 'first difference',
        of: ({ firstDifference: at }) => at && `${at.tenant}/${at.sessionId}`,
      },
    ]);
    if (rows.some(({ ok }) => !ok)) process.exitCode = 1;
  });

program
  .command('prune')
  .description('drop the tables of read models that no node uses')
  .action(async () => {
    await printOfCells(async (connection) => {
      const path = '/v1/admin/projections/prune';
      return (await connection.json<{ dropped: string[] }>('POST', path)).dropped.map((table) => ({ table }));
    }, columns<{ table: string }>('table'));
  });

const cells = program.command('cells').description('the databases that tenants live in');
cells
  .command('list', { isDefault: true })
  .description('list the cells, how many tenants live in each, and whether this node reaches it')
  .action(async () => {
    await print(await readCells(), columns<CellRow>('name', 'weight', 'tenants', 'status'));
  });
cells
  .command('drain <cell>')
  .description('move all tenants of a cell to the others, by their weights; repeat it when it was broken off')
  .action(async (cell: string) => {
    const { drainCell } = await import('./cells.js');
    await drainCell(cell, (moved) => print([moved], MOVED, false));
  });

const MOVED = columns<MovedTenant>('tenant', 'from', 'to', 'events', 'closedMs');
const tenants = program.command('tenants').description('in which cell a tenant lives');
tenants
  .command('place <tenant> <cell>')
  .description('say where a tenant is going to live, before anything is written for it')
  .action(async (tenant: string, cell: string) => {
    const { placeTenant } = await import('./cells.js');
    await placeTenant(tenant, cell);
  });
tenants
  .command('move <tenant> [cell]')
  .description('move a tenant to another cell while it is used; repeat it when it was broken off')
  .option('--give-up', 'leave it where it is, if it is still on its way')
  .action(async (tenant: string, cell: string | undefined, options: { giveUp?: boolean }) => {
    const { giveUp, moveTo } = await import('./cells.js');
    if (options.giveUp) {
      process.stderr.write(`${tenant} stays in ${await giveUp(tenant)}\n`);
      return;
    }
    if (cell === undefined) return tenants.error('name the cell to move it to', { exitCode: 2 });
    const onProgress = (step: string, events: number): void => {
      if (process.stderr.isTTY) process.stderr.write(`\r${step}, ${events} events copied  `);
    };
    const moved = await moveTo(tenant, cell, { onProgress });
    if (process.stderr.isTTY) process.stderr.write('\n');
    if (moved) await print([moved], MOVED);
    else process.stderr.write(`${tenant} lives in ${cell}\n`);
  });
tenants
  .command('moving')
  .description('list the tenants that are on their way, by a move that runs or was broken off')
  .action(async () => {
    const { listMoving } = await import('./cells.js');
    type Row = Awaited<ReturnType<typeof listMoving>>[number];
    await print(await listMoving(), columns<Row>('tenant', 'cell', 'movingTo'));
  });

const RANGE = columns<LogRange>('lane', 'from', 'to', 'isFull', 'bytes', 'tablespace');
const ranges = program.command('ranges').description('stretches of the log that have tables of their own');
ranges
  .command('list', { isDefault: true })
  .description('list them, by lane and position')
  .action(async () => {
    const { listRanges } = await import('./ranges.js');
    await print(await listRanges(service().cell), RANGE);
  });
ranges
  .command('begin')
  .description('let each lane begin a new range, as the owner of its tables, while the log is used')
  .option('--ahead <positions>', 'so far behind the present end of the lane', wholeNumber, 1_000_000)
  .action(async ({ ahead }: { ahead: number }) => {
    const { beginRanges } = await import('./ranges.js');
    await print(await beginRanges(service().cell, ahead), RANGE);
  });
ranges
  .command('move <tablespace>')
  .description('move all full ranges to a tablespace, as the owner of their tables, while the log is used')
  .action(async (tablespace: string) => {
    const { moveRanges } = await import('./ranges.js');
    await moveRanges(service().cell, tablespace, (range, events) =>
      print([{ ...range, events }], [...RANGE, column('events')], false),
    );
  });

interface MasterKeyRow {
  readonly cell: string;
  readonly master: string;
  readonly use: string;
  readonly dataKeys: number;
}
const masterKey = program.command('master-key').description('the keys that wrap the keys of what is sealed');
masterKey
  .command('list', { isDefault: true })
  .description('list the master keys of the settings by their ids, and how many keys each of them wraps')
  .action(async () => {
    const { listMasterKeys } = await import('./master-key.js');
    const { cell } = service();
    await print(await listMasterKeys(cell), columns<MasterKeyRow>('cell', 'master', 'use', 'dataKeys'));
  });
masterKey
  .command('rotate')
  .description('wrap all keys with the first master key of the settings; repeat it when it was broken off')
  .action(async () => {
    const { rotate } = await import('./master-key.js');
    const rotated = await rotate(service().cell, (keys) => {
      if (process.stderr.isTTY) process.stderr.write(`\r${keys} keys  `);
    });
    if (process.stderr.isTTY) process.stderr.write('\n');
    await print(rotated, columns<(typeof rotated)[number]>('cell', 'master', 'wrapped'));
  });

interface GenerationRow {
  readonly generation: number;
  readonly since: string;
  readonly server: string;
  readonly ends: readonly number[];
  readonly lost: readonly { readonly lane: number; readonly from: number; readonly to: number }[];
}

program
  .command('generations')
  .description('when the log was set back, by a failover or restore, and how many events were gone')
  .action(async () => {
    const generations = async (connection: Connection): Promise<GenerationRow[]> =>
      (await connection.json<{ data: GenerationRow[] }>('GET', '/v1/admin/log/generations')).data;
    await printOfCells(generations, [
      ...columns<GenerationRow>('generation', 'since', 'server'),
      { title: 'lost', of: ({ lost }) => lost.reduce((sum, { from, to }) => sum + to - from + 1, 0) },
    ]);
  });

interface NodeRow {
  readonly id: string;
  readonly host: string;
  readonly pid: number;
  readonly version: string;
  readonly status: string;
  readonly startedAt: string;
  readonly seenAt: string | null;
  readonly lanes: Readonly<Record<string, readonly number[]>>;
}

program
  .command('nodes')
  .description('the processes of the service, whether they live, and how many lanes each one works on')
  .action(async () => {
    const nodes = async (connection: Connection): Promise<NodeRow[]> =>
      (await connection.json<{ data: NodeRow[] }>('GET', '/v1/admin/nodes')).data;
    await printOfCells(nodes, [
      ...columns<NodeRow>('id', 'host', 'pid', 'version', 'status', 'startedAt', 'seenAt'),
      { title: 'lanes', of: ({ lanes }) => Object.values(lanes).reduce((sum, some) => sum + some.length, 0) },
    ]);
  });

const parked = program.command('parked').description('sessions that a read model could not take in');
interface ParkedRow {
  readonly projection: string;
  readonly tenant: string;
  readonly sessionId: string;
  readonly version: number;
  readonly parkedAt: string;
  readonly error: string;
}
const PARKED = columns<ParkedRow>('projection', 'tenant', 'sessionId', 'version', 'parkedAt', 'error');
parked
  .command('list', { isDefault: true })
  .description('list them, with the error')
  .action(async () => {
    await printOfCells(
      async (connection) => (await connection.json<{ data: ParkedRow[] }>('GET', '/v1/admin/parked')).data,
      PARKED,
    );
  });
for (const [name, description] of [
  ['retry', 'try again, e.g. with a corrected version of the service'],
  ['skip', 'leave the event out and go on behind it'],
] as const) {
  parked
    .command(`${name} <projection> <tenant> <session>`)
    .description(description)
    .action(async (projection: string, tenant: string, sessionId: string) => {
      const body = { projection, tenant, sessionId };
      const { parked: still } = await connect().json<{ parked: ParkedRow | null }>(
        'POST',
        `/v1/admin/parked/${name}`,
        { body },
      );
      if (still) {
        await print([still], PARKED);
        process.exitCode = 1;
      } else await print([body], columns<typeof body>('projection', 'tenant', 'sessionId'));
    });
}

program
  .command('sweep')
  .description('sweep now: expire, end dead generations, delete and erase what is to be')
  .option('--dry-run', 'list what a sweep would do, and why; changes nothing')
  .option('--limit <n>', 'of a dry run: list at most so many of each cell', wholeNumber, 1_000)
  .action(async ({ dryRun: isDry, limit }: { dryRun?: boolean; limit: number }) => {
    interface Action {
      readonly tenant: string;
      readonly sessionId: string;
      readonly action: string;
      readonly reason: string;
      /** When a session whose erasure is scheduled is to be erased. */
      readonly at?: string;
    }
    type Counts = Readonly<Record<string, number>>;
    if (isDry) {
      const complete: boolean[] = [];
      await printOfCells(
        async (connection) => {
          const { dryRun } = await connection.json<{ dryRun: { actions: Action[]; isComplete: boolean } }>(
            'GET',
            `/v1/admin/sweep${queryOf({ dryRun: 'true', limit })}`,
          );
          complete.push(dryRun.isComplete);
          return dryRun.actions;
        },
        columns<Action>('tenant', 'sessionId', 'action', 'reason', 'at'),
      );
      if (!complete.every(Boolean)) process.stderr.write(`There is more than this: --limit is ${limit}.\n`);
      return;
    }
    await printOfCells(
      async (connection) => {
        const { found, swept } = await connection.json<{ found: Counts; swept: Counts }>(
          'POST',
          '/v1/admin/sweep',
        );
        return Object.keys(found).map((reason) => ({ reason, found: found[reason], swept: swept[reason] }));
      },
      columns<SweepRow>('reason', 'found', 'swept'),
    );
  });

program
  .command('export [file]')
  .description('write sessions of the database as JSON lines, to standard output unless a file is named')
  .option('--session <id...>', 'these sessions only, of --tenant (default: default)')
  .addOption(
    new Option('--format <format>', 'all that happened, or the present histories as OpenAI messages')
      .choices(['events', 'openai'])
      .default('events'),
  )
  .option('--proof', 'with proofs that nothing was changed, left out or added, for `verify-export`')
  .action(async (file: string | undefined, options: ExportCommand) => {
    const { session, format, proof: hasProof = false } = options;
    if (hasProof && format !== 'events')
      return program.error('Only an export of all that happened can be proven: leave --format out.', {
        exitCode: 2,
      });
    const { exportTo } = await import('./transfer.js');
    const { tenant, cell } = service();
    const sessions = session && { tenant: tenant ?? 'default', sessionIds: session };
    await exportTo(file, { tenant, ...(sessions && { sessions }) }, { format, cell, hasProof });
  });

program
  .command('verify-export <file>')
  .description(
    'check an export with proofs, or receipts of erasures, without a service or database; --key names a file of the public keys of its notary; exit code 1 when something is not as it was signed',
  )
  .action(async (file: string) => {
    const { key } = program.opts<{ key?: string }>();
    if (key === undefined)
      return program.error('Name the file of public keys, which `colloquy notary` prints: --key notary.pub', {
        exitCode: 2,
      });
    const { verifyFile } = await import('./proof.js');
    const { findings, ...verified } = await verifyFile(file, key);
    await print(findings, columns<(typeof findings)[number]>('line', 'kind', 'what', 'message'));
    process.stderr.write(`${JSON.stringify({ ...verified, findings: findings.length })}\n`);
    if (findings.length > 0) process.exitCode = 1;
  });

program
  .command('audit-log')
  .description(
    'hold the log against what the notary signed of it; --key names a file of its public keys (default: those in the database); exit code 1 when something is not as it was',
  )
  .option('--checkpoints <file...>', 'checkpoints that were kept elsewhere')
  .option('--from-kafka', 'with the checkpoints that were published')
  .action(async (options: { checkpoints?: string[]; fromKafka?: boolean }) => {
    const { auditLogOf } = await import('./proof.js');
    const { key } = program.opts<{ key?: string }>();
    const { findings, ...audited } = await auditLogOf({ ...options, cell: service().cell, keyFile: key });
    await print(findings, columns<(typeof findings)[number]>('kind', 'lane', 'position', 'event', 'message'));
    process.stderr.write(`${JSON.stringify({ ...audited, findings: findings.length })}\n`);
    if (findings.length > 0) process.exitCode = 1;
  });

const NOTARY_KEY = columns<NotaryKey>('id', 'createdAt', 'retiredAt', 'verifier');
const notary = program.command('notary').description('the keys that checkpoints and exports are signed with');
notary
  .command('list', { isDefault: true })
  .description(
    'list them, the oldest first; --public prints the public keys alone, as a file of keys has them',
  )
  .option('--public', 'the public keys alone')
  .action(async ({ public: isPublic }: { public?: boolean }) => {
    const { listKeys } = await import('./proof.js');
    const keys = await listKeys(service().cell);
    if (isPublic) await write(keys.map(({ verifier }) => `${verifier}\n`).join(''));
    else await print(keys, NOTARY_KEY);
  });
notary
  .command('rotate')
  .description('let a new key sign from now on; the public halves of the former ones are kept')
  .action(async () => {
    const { rotateKey } = await import('./proof.js');
    await print(await rotateKey(service().cell), NOTARY_KEY);
  });

program
  .command('import <file>')
  .description('bring sessions into the database; - is standard input')
  .addOption(
    new Option('--format <format>', 'what `export` wrote, or conversations of --tenant in another form')
      .choices(['events', 'messages', 'openai', 'langchain', 'chatgpt'])
      .default('events'),
  )
  .action(async (file: string, { format }: Pick<ImportOptions, 'format'>) => {
    const { importFrom } = await import('./transfer.js');
    const { tenant = 'default', cell } = service();
    await importFrom(file, { format, tenant, cell });
  });

program
  .command('data')
  .description(
    'list embedded databases that lie apart from their data folders, as a start as root may put them',
  )
  .option('--remove <place>', 'delete the one in this place, with all its conversations')
  .action(async ({ remove }: { remove?: string }) => {
    const { listMovedData, removeMovedData } = await import('../embedded-postgres/moved-data.js');
    if (remove !== undefined) await removeMovedData(remove);
    else {
      type Row = Awaited<ReturnType<typeof listMovedData>>[number];
      await print(
        await listMovedData(),
        columns<Row>('place', 'dataDir', 'isReferred', 'isRunning', 'bytes'),
      );
    }
  });

program
  .command('migrate')
  .description('bring the schema of the database up to date, as the owner of its tables')
  .action(async () => {
    const { migrateDatabase } = await import('./access.js');
    await migrateDatabase(service().cell);
  });

program
  .command('grant <role>')
  .description('give a role of the database what the service needs: it cannot change the log')
  .action(async (role: string) => {
    const { grantTo } = await import('./access.js');
    await grantTo(role, service().cell);
  });

const KEY = columns<ApiKey>('id', 'tenant', 'name', 'scopes', 'createdAt', 'expiresAt', 'revokedAt');
const keys = program.command('keys').description('API keys in the database: see list, create and revoke');

keys
  .command('list')
  .description('list the keys of --tenant, or of all tenants')
  .action(async () => {
    const { listKeys } = await import('./access.js');
    await print(await listKeys(service().tenant), KEY);
  });

keys
  .command('create <name>')
  .description('create a key of --tenant; it is shown this once')
  .option('--operator', 'for an operator, who reaches all tenants')
  .option('--scopes <scopes>', 'separated by commas; all but admin unless given', (text) => text.split(','))
  .option('--expires <time>', 'when it runs out (RFC 3339); never unless given')
  .action(async (name: string, options: { operator?: boolean; scopes?: string[]; expires?: string }) => {
    const { createKey } = await import('./access.js');
    const tenant = options.operator ? '*' : (service().tenant ?? 'default');
    const key = await createKey({ tenant, name, scopes: options.scopes, expiresAt: options.expires });
    await print([key], [...columns<typeof key>('id', 'tenant', 'name', 'scopes', 'expiresAt', 'key')]);
  });

keys
  .command('revoke <id>')
  .description('revoke a key; all nodes refuse it within five seconds')
  .action(async (id: string) => {
    const { revokeKey } = await import('./access.js');
    await print([await revokeKey(id)], KEY);
  });

program
  .command('relay')
  .description('publishing to Kafka')
  .command('anew')
  .description('publish all events again, to the topic that the settings name; nodes are to be restarted')
  .action(async () => {
    const { publishAnew } = await import('./relay.js');
    await publishAnew(service().cell);
  });

program
  .command('recover')
  .description('show what Kafka has of events that a failover or restore took from the log')
  .requiredOption('--from-kafka', 'from the topic that the settings name')
  .option('--append', 'append them again, as new events, where their session stands as it stood before them')
  .action(async ({ append }: { append?: boolean }) => {
    const { recoverFromKafka } = await import('./recover.js');
    const { tenant, cell } = service();
    if (await recoverFromKafka({ append: append ?? false, tenant, cell })) process.exitCode = 1;
  });

program
  .command('token')
  .description('make a token (JWT) for trying out, signed by a key of your own')
  .option(
    '--signing-key <file>',
    'the private key in PEM; it is made if there is none',
    'colloquy-token-key.pem',
  )
  .option('--subject <name>', 'who calls, and whose sessions scopes with :own are for', 'alice')
  .option('--scope <scopes>', 'separated by blanks', 'sessions:read:own sessions:write:own generate:own')
  .option('--issuer <issuer>', 'as in auth.jwt.issuer', 'colloquy-token')
  .option('--audience <audience>', 'as in auth.jwt.audience', 'colloquy')
  .option('--expires-in <seconds>', 'for how long it holds', wholeNumber, 3_600)
  .action(async (options: Omit<TokenOptions, 'tenant'>) => {
    const { makeToken } = await import('./access.js');
    const { token, settings } = await makeToken({ ...options, tenant: service().tenant ?? 'default' });
    // The token alone, so that a script can take it.
    process.stderr.write(`The service takes it with these settings in colloquy.yml:\n\n${settings}\n\n`);
    await write(`${token}\n`);
  });

function explain(error: unknown): string {
  if (!(error instanceof ColloquyError)) return error instanceof Error ? error.message : String(error);
  const { errors = [] } = error.problem as { errors?: { pointer: string; detail: string }[] };
  return [`${error.code}: ${error.message}`, ...errors.map((one) => `  ${one.pointer} ${one.detail}`)].join(
    '\n',
  );
}

async function main(): Promise<number> {
  try {
    await program.parseAsync();
    return Number(process.exitCode ?? 0);
  } catch (error) {
    if (error instanceof CommanderError) return error.exitCode === 0 ? 0 : 2;
    if (isReaderGone(error)) return 0;
    process.stderr.write(`${explain(error)}\n`);
    return 1;
  }
}

// The parts of the service let a process end that has nothing to do but wait for them; a command must not end that way,
// silently and with exit code 0.
setInterval(() => undefined, 2 ** 31 - 1);
void main().then((code) => process.exit(code));
