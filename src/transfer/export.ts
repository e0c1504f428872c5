import { createHash } from 'node:crypto';
import { type EventLog } from '../event-store/log.js';
import { type RecordedEvent } from '../event-store/recorded-event.js';
import { carryOn } from '../domain/history.js';
import { type MessageRecord, type SessionRecord } from '../read-models/session-record.js';
import { toOpenAi } from './openai-messages.js';
import { type ExportProof } from '../proof/export-proof.js';
import { EXPORT_FORMAT, exported, type ExportManifestData } from './export-format.js';

const STREAMS = 1_000;

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
  let title: string | null = null;
  let left: MessageRecord[] = [];
  let last: RecordedEvent | undefined;
  const put = async (): Promise<void> => {
    if (!last || left.length === 0) return;
    sessions += 1;
    const messages = left.map(({ data }) => toOpenAi(data));
    await write(`${JSON.stringify({ id: last.streamId, ...(title !== null && { title }), messages })}\n`);
  };
  for await (const page of eventsOf(store, selection)) {
    for (const event of page as readonly RecordedEvent[] as readonly SessionRecord[]) {
      if (isOfOther(event, last)) {
        await put();
        left = [];
      }
      last = event;
      if (event.erased) continue;
      if (event.type === 'SessionCreated') title = event.data.title ?? null;
      if (event.type === 'SessionDetailsChanged' && event.data.title !== undefined) title = event.data.title;
      switch (event.type) {
        case 'SessionCreated':
        case 'ConversationReset':
        case 'SessionDeleted':
        case 'SessionErased':
          left = [];
          break;
        case 'MessageAppended':
        case 'MessageRemoved':
        case 'HistoryRewound':
          carryOn(left, event);
      }
    }
  }
  await put();
  return sessions;
}

/**
 * Writes sessions as they were at the moment of the call, whatever is appended meanwhile, deleted ones too; what a
 * tenant has set for itself is not part of it. Memory does not grow with the log.
 *
 * @param store without an upcaster, so that events are written as they were recorded
 * @param write takes a piece of text, whole lines; the next one comes when it has resolved
 * @param proof adds by what others can check the export
 * @throws whatever `write` throws; DatabaseUnavailable; NoNotaryKey, NotProvable
 */
export async function exportSessions(
  store: EventLog,
  selection: ExportSelection,
  write: (text: string) => Promise<void>,
  proof?: ExportProof,
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
  const endOf = (event: RecordedEvent) => {
    const { tenant, streamId, version } = event;
    sessions += 1;
    return {
      session: { tenant, sessionId: streamId, version },
      ...(proof && { statement: proof.session(event) }),
    };
  };

  const cut = await store.lanes.ends();
  if (proof) await put(await proof.begin(cut));
  for await (const page of eventsUpTo(store, cut, selection)) {
    const lines: unknown[] = [];
    const proofs = await proof?.of(page);
    for (const [index, event] of page.entries()) {
      if (last && isOfOther(event, last)) lines.push(endOf(last));
      lines.push({ ...exported(event), ...(proofs && { proof: proofs[index] }) });
      last = event;
    }
    events += page.length;
    await put(lines);
  }
  if (last) await put([endOf(last)]);
  if (proof) await put([await proof.whole(claimOf(selection), events)]);
  const manifest = { format: EXPORT_FORMAT, sessions, events, sha256: hash.digest('hex') } as const;
  await write(`${JSON.stringify({ manifest })}\n`);
  return manifest;
}

/** The events of the sessions up to the moment of the call, session by session, in pages. */
async function* eventsOf(store: EventLog, selection: ExportSelection): AsyncGenerator<RecordedEvent[]> {
  yield* eventsUpTo(store, await store.lanes.ends(), selection);
}

/** @param cut by lane: the last position */
async function* eventsUpTo(
  store: EventLog,
  cut: readonly number[],
  selection: ExportSelection,
): AsyncGenerator<RecordedEvent[]> {
  for await (const streams of pagesOf(store, selection)) yield* store.cuts.eventsUpTo(cut, streams);
}

/** What an export is of, in words that are signed. */
function claimOf({ tenant, sessions }: ExportSelection): string {
  if (!sessions) return tenant === undefined ? 'all sessions of all tenants' : `all sessions of ${tenant}`;
  return `these sessions of ${sessions.tenant}: ${JSON.stringify([...new Set(sessions.sessionIds)].sort())}`;
}

const isOfOther = (event: RecordedEvent, last: RecordedEvent | undefined): boolean =>
  last !== undefined && (last.streamId !== event.streamId || last.tenant !== event.tenant);

async function* pagesOf(store: EventLog, { tenant, sessions }: ExportSelection) {
  await store.absences.refresh();
  if (sessions) {
    if (store.absences.has(sessions.tenant)) return;
    const ids = [...new Set(sessions.sessionIds)].sort();
    const streams = ids.map((streamId) => ({ tenant: sessions.tenant, streamId }));
    const versions = await store.streams.versions(streams);
    yield streams.map((stream, index) => ({ ...stream, version: versions[index] ?? 0 }));
    return;
  }
  let after = { tenant: tenant ?? '', streamId: '' };
  for (;;) {
    const page = await store.cuts.streamsAfter(after, STREAMS, tenant);
    // The stream of a tenant's settings is not a session; no session id begins with `~`. What is left of a tenant that
    // was moved is exported where it lives.
    yield page.filter(({ tenant: of, streamId }) => !streamId.startsWith('~') && !store.absences.has(of));
    const end = page.at(-1);
    if (!end || page.length < STREAMS) return;
    after = end;
  }
}
