import { createReadStream, createWriteStream } from 'node:fs';
import { access, mkdtemp, open, rename, rm, stat } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { pipeline } from 'node:stream/promises';
import { CellDirectory } from '../cells/cell-directory.js';
import { FIRST_CELL } from '../config.js';
import { isUndefinedTable } from '../database/connection.js';
import { upcast } from '../domain/session.events.js';
import { type Upcast } from '../event-store/event-decoder.js';
import { exportOpenAi, exportSessions, type ExportSelection } from '../transfer/export.js';
import { type HistoryForm } from '../transfer/histories.js';
import {
  type ImportFormat,
  ImportRefused,
  readExport,
  readHistories,
  readMessages,
} from '../transfer/import-format.js';
import { type ImportReport, importSessions } from '../transfer/import.js';
import { migrate } from '../database/migrate.js';
import { type EventLog } from '../event-store/log.js';
import { type KeyedDatabase, openLog } from '../open-log.js';
import { cellsOfSettings, withDatabase, withPool } from './database.js';
import { migrations } from '../migrations.js';
import { print, progressBar, write } from './output.js';
import { proofOf } from './proof.js';

export interface ExportOptions {
  readonly format: 'events' | 'openai';
  readonly cell?: string | undefined;
  /** Whether others can check it. */
  readonly hasProof: boolean;
}

/** @param file standard output unless given. The file appears only when it is complete. */
export async function exportTo(
  file: string | undefined,
  selection: ExportSelection,
  { format, cell, hasProof }: ExportOptions,
): Promise<void> {
  if (format === 'openai') {
    await exportHistories(file, selection, cell);
    return;
  }
  const manifest = await withDatabase({ create: false, cell }, async (database) => {
    if (hasProof) await migrate(database.url, migrations);
    return withStore(database, (store) => {
      const proof = hasProof ? proofOf(store) : undefined;
      return file === undefined
        ? exportSessions(store, selection, write, proof)
        : toFile(file, (put) => exportSessions(store, selection, put, proof));
    });
  });
  if (file === undefined) {
    process.stderr.write(`${manifest.sessions} sessions, ${manifest.events} events\n`);
    return;
  }
  await print(
    [manifest],
    (['sessions', 'events', 'sha256'] as const).map((title) => ({ title, of: (row) => row[title] })),
  );
}

async function exportHistories(
  file: string | undefined,
  selection: ExportSelection,
  cell: string | undefined,
): Promise<void> {
  const sessions = await withDatabase({ create: false, cell }, (database) =>
    withStore(
      database,
      (store) =>
        file === undefined
          ? exportOpenAi(store, selection, write)
          : toFile(file, (put) => exportOpenAi(store, selection, put)),
      upcast,
    ),
  );
  if (file === undefined) process.stderr.write(`${sessions} sessions\n`);
  else await print([{ sessions }], [{ title: 'sessions', of: (row) => row.sessions }]);
}

/** The file appears only when it is complete. */
async function toFile<Result>(
  file: string,
  work: (put: (text: string) => Promise<void>) => Promise<Result>,
): Promise<Result> {
  const partial = `${file}.partial`;
  // Readable by its owner only, because it contains conversations.
  const handle = await open(partial, 'w', 0o600);
  try {
    const result = await work(async (text) => {
      await handle.writeFile(text);
    });
    await handle.sync();
    await handle.close();
    await rename(partial, file);
    return result;
  } catch (error) {
    await handle.close().catch(() => undefined);
    await rm(partial, { force: true });
    throw error;
  }
}

export interface ImportOptions {
  readonly format: 'events' | 'messages' | HistoryForm;
  /** Of messages and histories; the lines of an export name their own. */
  readonly tenant: string;
  readonly cell?: string | undefined;
}

/** @param file `-`: standard input */
export async function importFrom(file: string, options: ImportOptions): Promise<void> {
  const report = await withFile(file, (path) =>
    withDatabase({ create: true, cell: options.cell }, async (database) => {
      await migrate(database.url, migrations);
      return withStore(database, (store) => importFile(store, path, options));
    }),
  );
  const titles = ['sessions', 'events', 'imported', 'unchanged', 'closed'] as const;
  await print(
    [report],
    titles.map((title) => ({ title, of: (row: ImportReport) => row[title] })),
  );
}

async function importFile(
  store: EventLog,
  path: string,
  { format, tenant, cell = FIRST_CELL }: ImportOptions,
): Promise<ImportReport> {
  const bytes = () => createReadStream(path, { highWaterMark: 1024 * 1024 });
  const bar = progressBar('events');
  // Of the file, so that the same file is the same sessions whenever it is imported.
  const { mtimeMs } = await stat(path);
  try {
    const read =
      format === 'events'
        ? readExport(bytes)
        : format === 'messages'
          ? readMessages(bytes, tenant)
          : readHistories(bytes, format, tenant, Math.floor(mtimeMs));
    if (cellsOfSettings().length === 1) return await importSessions(store, read, bar.update);
    return await withPool({ create: false }, (pool) =>
      importSessions(store, intoCell(read, cell, new CellDirectory(pool)), bar.update),
    );
  } finally {
    bar.stop();
  }
}

/** The same sessions; refused when one is of a tenant that lives elsewhere. Tenants that are new live in this cell. */
function intoCell(read: ImportFormat, cell: string, directory: CellDirectory): ImportFormat {
  return async function* () {
    for await (const piece of read()) {
      const home = await directory.place(piece.tenant, [{ name: cell, weight: 1 }]);
      if (home !== cell)
        throw new ImportRefused(
          `the tenant ${piece.tenant} lives in the cell ${home}: import it with --cell ${home}`,
        );
      yield piece;
    }
  };
}

/** @param lift without it events are exported and imported as they were recorded */
async function withStore<T>(
  database: KeyedDatabase,
  work: (store: EventLog) => Promise<T>,
  lift?: Upcast,
): Promise<T> {
  const store = await openLog(database, lift ? { upcast: lift } : {}).catch((error: unknown) => {
    throw isUndefinedTable(error) ? new Error('this database holds no log of Colloquy') : error;
  });
  try {
    return await work(store);
  } finally {
    await store.close();
  }
}

/** An import reads its input twice, so standard input is first written to a temporary file. */
async function withFile<T>(file: string, work: (path: string) => Promise<T>): Promise<T> {
  if (file !== '-') {
    await access(file);
    return work(file);
  }
  const folder = await mkdtemp(join(tmpdir(), 'colloquy-import-'));
  try {
    const path = join(folder, 'stdin.jsonl');
    await pipeline(process.stdin, createWriteStream(path, { mode: 0o600 }));
    return await work(path);
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}
