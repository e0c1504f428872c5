import { createReadStream, createWriteStream } from 'node:fs';
import { access, mkdtemp, open, rename, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { pipeline } from 'node:stream/promises';
import { type ExportManifestData } from '../transfer/export-format.js';
import { exportSessions, type ExportSelection } from '../transfer/export.js';
import { readExport, readMessages } from '../transfer/import-format.js';
import { type ImportReport, importSessions } from '../transfer/import.js';
import { migrate } from '../database/migrate.js';
import { EventLog } from '../event-store/log.js';
import { withDatabase } from './database.js';
import { print, progressBar, write } from './output.js';

/** @param file standard output unless given. The file appears only when it is complete. */
export async function exportTo(file: string | undefined, selection: ExportSelection): Promise<void> {
  const manifest = await withDatabase({ create: false }, (url) =>
    withStore(url, (store) =>
      file === undefined ? exportSessions(store, selection, write) : exportToFile(store, selection, file),
    ),
  );
  if (file === undefined) {
    process.stderr.write(`${manifest.sessions} sessions, ${manifest.events} events\n`);
    return;
  }
  await print(
    [manifest],
    (['sessions', 'events', 'sha256'] as const).map((title) => ({ title, of: (row) => row[title] })),
  );
}

async function exportToFile(
  store: EventLog,
  selection: ExportSelection,
  file: string,
): Promise<ExportManifestData> {
  const partial = `${file}.partial`;
  // Readable by its owner only, because it contains conversations.
  const handle = await open(partial, 'w', 0o600);
  try {
    const manifest = await exportSessions(store, selection, async (text) => {
      await handle.writeFile(text);
    });
    await handle.sync();
    await handle.close();
    await rename(partial, file);
    return manifest;
  } catch (error) {
    await handle.close().catch(() => undefined);
    await rm(partial, { force: true });
    throw error;
  }
}

export interface ImportOptions {
  readonly format: 'events' | 'messages';
  /** Of messages; the lines of an export name their own. */
  readonly tenant: string;
}

/** @param file `-`: standard input */
export async function importFrom(file: string, options: ImportOptions): Promise<void> {
  const report = await withFile(file, (path) =>
    withDatabase({ create: true }, async (url) => {
      // Loaded here: it brings the whole service, which no other command needs.
      await import('reflect-metadata');
      const { migrations } = await import('../migrations.js');
      await migrate(url, migrations);
      return withStore(url, (store) => importFile(store, path, options));
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
  { format, tenant }: ImportOptions,
): Promise<ImportReport> {
  const bytes = () => createReadStream(path, { highWaterMark: 1024 * 1024 });
  const bar = progressBar('events');
  try {
    return await importSessions(
      store,
      format === 'events' ? readExport(bytes) : readMessages(bytes, tenant),
      bar.update,
    );
  } finally {
    bar.stop();
  }
}

async function withStore<T>(url: string, work: (store: EventLog) => Promise<T>): Promise<T> {
  // Without an upcaster, so that events are exported and imported as they were recorded.
  const store = await EventLog.open(url).catch((error: unknown) => {
    const isUnknown = (error as { code?: unknown }).code === '42P01';
    throw isUnknown ? new Error('this database holds no log of Colloquy') : error;
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
