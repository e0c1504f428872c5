import { createHash } from 'node:crypto';
import { type EventLog } from '../event-store/log.js';
import { type RecordedEvent } from '../event-store/recorded-event.js';
import { type HISTORY_EVENTS, messagesLeft } from '../domain/history.js';
import { type SessionRecord } from '../read-models/session-record.js';
import { toOpenAi } from './openai-messages.js';
import { EXPORT_FORMAT, exported, type ExportManifestData } from './export-format.js';

const STREAMS = 1_000;

type HistoryRecord = SessionRecord & { type: (typeof HISTORY_EVENTS)[number] };

export interface ExportSelection {
  /** Sessions of this tenant only. */
  readonly tenant?: string | undefined;
  /** These sessions of the tenant only; those that do not exist are left out. */
  readonly sessions?: { readonly tenant: string; readonly sessionIds: readonly string[] } | undefined;
}

/**
 * Writes the present histories of sessions in OpenAI's form, one session in a line: `{"id", "title"?, "messages": […]}`, as they were
 * at the moment of the call. Sessions without messages are left out.
 *
 * @param store lifts events to the present schema version
 * @returns the number of sessions
 */
export async function exportOpenAi(
  store: EventLog,
  selection: ExportSelection,
  write: (text: string) => Promise<void>,
): Promise<number> {
  let sessions = 0;
  for await (const streams of pagesOf(store, selection)) {
    for (const { tenant, streamId, version } of streams) {
      let title: string | null = null;
      let history: HistoryRecord[] = [];
      for await (const event of store.streams.events({ tenant, streamId }, { to: version })) {
        const record = event as SessionRecord;
        if (record.type === 'SessionCreated') title = record.data.title ?? null;
        if (record.type === 'SessionDetailsChanged' && record.data.title !== undefined)
          title = record.data.title;
        const { type } = record;
        if (type === 'SessionCreated' || type === 'ConversationReset' || type === 'SessionDeleted')
          history = [];
        else if (type === 'MessageAppended' || type === 'MessageRemoved' || type === 'HistoryRewound')
          history.push(record);
      }
      const messages = messagesLeft(history).map(({ data }) => toOpenAi(data));
      if (messages.length === 0) continue;
      sessions += 1;
      await write(`${JSON.stringify({ id: streamId, ...(title !== null && { title }), messages })}\n`);
    }
  }
  return sessions;
}

/**
 * Writes sessions as they were at the moment of the call, whatever is appended meanwhile, deleted ones too; what a
 * tenant has set for itself is not part of it. Memory does not grow with the log.
 *
 * @param store without an upcaster, so that events are written as they were recorded
 * @param write takes a piece of text, whole lines; the next one comes when it has resolved
 * @throws whatever `write` throws; DatabaseUnavailable
 */
export async function exportSessions(
  store: EventLog,
  selection: ExportSelection,
  write: (text: string) => Promise<void>,
): Promise<ExportManifestData> {
  const hash = createHash('sha256');
  const put = (lines: readonly unknown[]): Promise<void> => {
    const text = lines.map((line) => `${JSON.stringify(line)}\n`).join('');
    hash.update(text);
    return write(text);
  };
  let sessions = 0;
  let events = 0;
  let last: RecordedEvent | undefined;
  const endOf = ({ tenant, streamId, version }: RecordedEvent) => {
    sessions += 1;
    return { session: { tenant, sessionId: streamId, version } };
  };

  const cut = await store.lanes.ends();
  for await (const streams of pagesOf(store, selection)) {
    for await (const page of store.cuts.eventsUpTo(cut, streams)) {
      const lines: unknown[] = [];
      for (const event of page) {
        if (last && (last.streamId !== event.streamId || last.tenant !== event.tenant))
          lines.push(endOf(last));
        lines.push(exported(event));
        last = event;
      }
      events += page.length;
      await put(lines);
    }
  }
  if (last) await put([endOf(last)]);
  const manifest = { format: EXPORT_FORMAT, sessions, events, sha256: hash.digest('hex') } as const;
  await write(`${JSON.stringify({ manifest })}\n`);
  return manifest;
}

async function* pagesOf(store: EventLog, { tenant, sessions }: ExportSelection) {
  if (sessions) {
    const ids = [...new Set(sessions.sessionIds)].sort();
    const streams = ids.map((streamId) => ({ tenant: sessions.tenant, streamId }));
    const versions = await store.streams.versions(streams);
    yield streams.map((stream, index) => ({ ...stream, version: versions[index] ?? 0 }));
    return;
  }
  let after = { tenant: tenant ?? '', streamId: '' };
  for (;;) {
    const page = await store.cuts.streamsAfter(after, STREAMS, tenant);
    // The stream of a tenant's settings is not a session; no session id begins with `~`.
    yield page.filter(({ streamId }) => !streamId.startsWith('~'));
    const end = page.at(-1);
    if (!end || page.length < STREAMS) return;
    after = end;
  }
}
