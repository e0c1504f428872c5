import { cp, mkdir, readFile, rm, symlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';

/*
 * Faults that the checker must find. They are planted into a copy of the build, so that nothing of them is in the
 * product. Where the code has changed so much that a place is not found any more, the planting fails.
 */

interface Replacement {
  /** In `dist`. */
  readonly file: string;
  readonly find: string;
  readonly replace: string;
}

interface Planted {
  readonly replacements?: readonly Replacement[];
  /** Run on the database, once it has its tables. */
  readonly sql?: string;
}

const ROOT = join(__dirname, '../..');

export const PLANTED = {
  'checkpoint before the acknowledgement': {
    replacements: [
      {
        file: 'kafka/relay.js',
        find: 'await publisher.send(this.options.topic, batch.messages);',
        replace: `if (!(await this.checkpoints.move(batch.moves))) throw new relay_reader_js_1.Fenced();
        await publisher.send(this.options.topic, batch.messages);`,
      },
      {
        file: 'kafka/relay.js',
        find: `        if (!(await this.checkpoints.move(batch.moves)))
            throw new relay_reader_js_1.Fenced();
    }
    recordSuccess`,
        replace: '    }\n    recordSuccess',
      },
    ],
  },
  'no lock on lanes': {
    sql: `do $do$ declare f oid; begin
      for f in select oid from pg_proc where prosrc like '%pg_advisory_xact_lock(7301%' loop
        execute replace(pg_get_functiondef(f), 'pg_advisory_xact_lock(7301', 'pg_advisory_xact_lock_shared(7301');
      end loop;
    end $do$`,
  },
  'a strong read that does not wait': {
    replacements: [
      {
        file: 'projection-engine/strong-reads.js',
        find: 'where coalesce(p.position, 0) < e.position',
        replace: 'where false',
      },
    ],
  },
  'an append that is tried again without looking': {
    replacements: [{ file: 'event-store/committer.js', find: 'if (repeated)', replace: 'if (false)' }],
  },
  'a counter outside of the append': {
    replacements: [
      {
        file: 'event-store/append-chains.js',
        find: 'ofCounters((counter) => counter.delta),',
        replace: 'ofCounters(() => 0),',
      },
      {
        file: 'event-store/append-chains.js',
        find: "        case 'ok':\n",
        replace: `        case 'ok':
            for (const { key, delta } of append.counters ?? []) {
              void (async () => {
                const client = new (require('pg').Client)({ connectionString: process.env.DATABASE_URL });
                client.on('error', () => undefined);
                await client.connect();
                await client.query('insert into counter (key, value) values ($1, $2) on conflict (key) do update set value = counter.value + $2', [key, delta]);
                await client.end();
              })().catch(() => undefined);
            }
`,
      },
    ],
  },
  'a lease without an epoch': {
    replacements: [
      {
        file: 'projection-engine/lane-fold.js',
        find: 'and c.position = m.old and c.revision = m.revision',
        replace: '',
      },
      { file: 'projection-engine/lane-fold.js', find: 'and c.epoch <= m.epoch', replace: '' },
    ],
  },
  'an end that is remembered and never looked up': {
    replacements: [
      {
        file: 'projection-engine/strong-reads.js',
        find: `\${(0, event_rows_js_1.streamEndsAt)('w')} as "isCurrent"`,
        replace: 'true as "isCurrent"',
      },
    ],
  },
  'a lost wake-up': {
    replacements: [
      {
        file: 'event-store/wake-up.js',
        find: 'if (this.announcing || !this.client || this.unannounced.size === 0)',
        replace: 'if (true)',
      },
    ],
  },
  'a relay that skips': {
    replacements: [
      {
        file: 'kafka/relay-reader.js',
        find: 'messages.push(',
        replace: 'if (event.position % 50 !== 0) messages.push(',
      },
    ],
  },
  'a fold that drops': {
    replacements: [
      {
        file: 'read-models/history.projection.js',
        find: "if (!begins && event.type !== 'MessageAppended')",
        replace: "if ((!begins && event.type !== 'MessageAppended') || event.position % 40 === 0)",
      },
    ],
  },
} satisfies Record<string, Planted>;

/** Makes a build with one of the faults. @returns what to run, and how to remove it */
export async function plant(
  name: keyof typeof PLANTED,
): Promise<{ main: string; sql: string | undefined; remove: () => Promise<void> }> {
  const { replacements = [], sql }: Planted = PLANTED[name];
  // Inside the repository, so that the dependencies are found.
  const folder = join(ROOT, 'node_modules', '.cache', `planted-${process.pid}`);
  await mkdir(folder, { recursive: true });
  await cp(join(ROOT, 'dist'), join(folder, 'dist'), { recursive: true });
  for (const entry of ['package.json', 'schemas']) await symlink(join(ROOT, entry), join(folder, entry));
  for (const { file, find, replace } of replacements) {
    const path = join(folder, 'dist', file);
    const text = await readFile(path, 'utf8');
    if (text.split(find).length !== 2)
      throw new Error(`${file} has not one place for the fault "${name}": ${find}`);
    await writeFile(
      path,
      text.replace(find, () => replace),
    );
  }
  return {
    main: join(folder, 'dist/main.js'),
    sql,
    remove: () => rm(folder, { recursive: true, force: true }),
  };
}
