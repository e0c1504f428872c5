import { type HistoryForm } from '../../../src/transfer/histories.js';
import { readExport, readHistories, readMessages } from '../../../src/transfer/import-format.js';
import { upcast } from '../../../src/domain/session.events.js';
import { exportOpenAi, exportSessions, type ExportSelection } from '../../../src/transfer/export.js';
import { type ImportReport, importSessions } from '../../../src/transfer/import.js';
import { EventLog, type EventLogOptions } from '../../../src/event-store/log.js';
import { type TestDatabase } from '../../support/database.js';

export type Line = Record<string, unknown>;

/** Opens a log as the command line does, so that events are read as they were recorded. */
export async function withStore<T>(
  url: string,
  work: (store: EventLog) => Promise<T>,
  options: EventLogOptions = {},
): Promise<T> {
  const store = await EventLog.open(url, options);
  try {
    return await work(store);
  } finally {
    await store.close();
  }
}

/** @param whenWritten called after each piece of the text */
export async function exportOf(
  db: Pick<TestDatabase, 'url'>,
  selection: ExportSelection = {},
  options: EventLogOptions = {},
  whenWritten: () => Promise<void> = () => Promise.resolve(),
): Promise<string> {
  let text = '';
  await withStore(
    db.url,
    (store) =>
      exportSessions(store, selection, (piece) => {
        text += piece;
        return whenWritten();
      }),
    options,
  );
  return text;
}

// The text is delivered in pieces of arbitrary length, as a file is read.
const bytesOf = (text: string) =>
  async function* (): AsyncGenerator<Uint8Array> {
    const bytes = Buffer.from(text);
    for (let from = 0; from < bytes.length; from += 60_001) {
      yield await Promise.resolve(bytes.subarray(from, from + 60_001));
    }
  };

export const importInto = (
  db: Pick<TestDatabase, 'url'>,
  text: string,
  options: EventLogOptions = {},
): Promise<ImportReport> =>
  withStore(db.url, (store) => importSessions(store, readExport(bytesOf(text))), options);

export const importMessages = (
  db: Pick<TestDatabase, 'url'>,
  lines: readonly unknown[],
  tenant: string,
): Promise<ImportReport> =>
  withStore(db.url, (store) =>
    importSessions(
      store,
      readMessages(bytesOf(lines.map((line) => `${JSON.stringify(line)}\n`).join('')), tenant),
    ),
  );

/** When a message that does not say so counts as written. */
export const NOT_TOLD = Date.parse('2026-01-01T00:00:00.000Z');

export const importHistories = (
  db: Pick<TestDatabase, 'url'>,
  text: string,
  form: HistoryForm,
  tenant = 'acme',
): Promise<ImportReport> =>
  withStore(db.url, (store) => importSessions(store, readHistories(bytesOf(text), form, tenant, NOT_TOLD)));

/** What `export --format openai` writes. */
export async function exportedHistories(
  db: Pick<TestDatabase, 'url'>,
  options: EventLogOptions = {},
): Promise<Record<string, unknown>[]> {
  let text = '';
  await withStore(
    db.url,
    (store) =>
      exportOpenAi(store, {}, (piece) => {
        text += piece;
        return Promise.resolve();
      }),
    { upcast, ...options },
  );
  return text
    .split('\n')
    .filter(Boolean)
    .map((line) => JSON.parse(line) as Record<string, unknown>);
}

export const linesOf = (text: string): Line[] =>
  text
    .trimEnd()
    .split('\n')
    .map((line) => JSON.parse(line) as Line);

/** Only the events of an export, without those that an import added. */
export const recorded = (text: string): string[] =>
  text.split('\n').filter((line) => line.startsWith('{"id"') && !line.includes('"actor":"system:import"'));
