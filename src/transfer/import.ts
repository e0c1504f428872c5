import { randomUUID } from 'node:crypto';
import { isDeepStrictEqual } from 'node:util';
import { isActivity, STATE_VERSION } from '../domain/session.state.js';
import { sessionDecider } from '../domain/session.js';
import { sessionEvents, type SessionEvent } from '../domain/session.events.js';
import { type EventLog } from '../event-store/log.js';
import {
  type ImportedEvent,
  type ImportedPiece,
  type ImportedStream,
  type LogImport,
} from '../event-store/log-import.js';
import { exported } from './export-format.js';
import {
  BY,
  type ImportFormat,
  ImportRefused,
  type SessionFold,
  type SessionPiece,
} from './import-format.js';

/** Events per commit, and per comparison with existing sessions. A longer session is still a single commit. */
const BATCH_EVENTS = 1_000;
const BATCH_BYTES = 8 * 1024 * 1024;
/**
 * Tolerated difference between the clocks of two databases. An event of the future would keep its session from
 * expiring.
 */
const CLOCK_SKEW_MS = 300_000;

/** The result of an import; `imported + unchanged = sessions`. */
export interface ImportReport {
  readonly sessions: number;
  /** Number of events in the input, without those that the import adds to close sessions. */
  readonly events: number;
  readonly imported: number;
  /** Sessions that the database had already, with the same events. */
  readonly unchanged: number;
  /** Sessions that were active in the input and were closed as expired. */
  readonly closed: number;
}

/**
 * Imports sessions into a database with their ids, versions and times.
 *
 * The whole input is read and checked before anything is written: against its manifest, against the schemas and the
 * order of events, and against the sessions of the database. Then it is read again and written, each session
 * atomically, so that an import that was killed is completed by starting it again. Active sessions are closed, because
 * imports do not count towards the cap, and running generations do not go on.
 *
 * @param read gives the pieces of all sessions from the beginning; called twice
 * @throws ImportRefused before anything was written; DatabaseUnavailable
 */
export async function importSessions(
  store: EventLog,
  read: ImportFormat,
  onProgress: (events: number, total: number) => void = () => undefined,
): Promise<ImportReport> {
  const notAfter = new Date(Date.parse(await store.now()) + CLOCK_SKEW_MS).toISOString();
  const check = new Pass(store, notAfter);
  for await (const piece of read()) await check.take(piece);
  const report = await check.end();
  if (report.imported === 0) return report;

  const log = await store.beginImport();
  try {
    const pass = new Pass(store, notAfter, log, (events) => {
      onProgress(events, report.events);
    });
    for await (const piece of read()) await pass.take(piece);
    return await pass.end();
  } finally {
    await log.close();
  }
}

const isFull = ({ events, bytes }: { events: number; bytes: number }): boolean =>
  events >= BATCH_EVENTS || bytes >= BATCH_BYTES;

/** One pass through all sessions: compares them with the database and, given a `log`, writes those that it lacks. */
class Pass {
  private batch: SessionPiece[] = [];
  /** Sizes of what was read but not compared yet, and of what was compared but not committed yet. */
  private readonly waiting = { batch: { events: 0, bytes: 0 }, staged: { events: 0, bytes: 0 } };
  /** The session in the middle of which the last batch ended, and whether the database had it. */
  private open: { readonly key: string; readonly isThere: boolean } | undefined;
  private staged: ImportedStream[] = [];
  private readonly counts = { sessions: 0, events: 0, imported: 0, unchanged: 0, closed: 0 };

  constructor(
    private readonly store: EventLog,
    private readonly notAfter: string,
    private readonly log?: LogImport,
    private readonly onProgress?: (events: number) => void,
  ) {}

  async take(piece: SessionPiece): Promise<void> {
    this.batch.push(piece);
    const { batch, staged } = this.waiting;
    batch.events += piece.events.length;
    batch.bytes += piece.bytes;
    // Commits only where a session ends, so that all staged sessions are complete.
    const isCommit =
      piece.end && isFull({ events: staged.events + batch.events, bytes: staged.bytes + batch.bytes });
    if (isCommit || isFull(batch)) await this.flush();
    if (isCommit) await this.commit();
  }

  async end(): Promise<ImportReport> {
    await this.flush();
    await this.commit();
    return this.counts;
  }

  private async flush(): Promise<void> {
    const there = await this.versionsThere();
    const pieces: ImportedPiece[] = [];
    const ended: ImportedStream[] = [];
    for (const piece of this.batch) {
      const { tenant, sessionId, events, end } = piece;
      const key = keyOf(piece);
      const late = events.find((event) => event.time > this.notAfter);
      if (late) throw new ImportRefused(`${key} has an event of ${late.time}, which is in the future`);
      const known = there.get(key);
      // The result for the first piece of a session holds for all its pieces. The commit notices a session that was
      // created meanwhile.
      const isThere = this.open?.key === key ? this.open.isThere : known !== undefined;
      if (isThere) await this.compare(piece, known ?? 0);
      this.open = end ? undefined : { key, isThere };
      this.counts.events += events.length;
      if (end) {
        this.counts.sessions += 1;
        this.counts[isThere ? 'unchanged' : 'imported'] += 1;
      }
      if (isThere) continue;
      const closed = end && closing(end);
      if (closed?.events.length) this.counts.closed += 1;
      const stream = { tenant, streamId: sessionId };
      pieces.push({ stream, begins: piece.begins, events: [...events, ...(closed?.events ?? [])] });
      if (closed) ended.push({ ...stream, ...closed.stream });
    }
    if (this.log && pieces.length > 0) await this.log.add(pieces);
    this.staged.push(...ended);
    const { batch, staged } = this.waiting;
    this.waiting.staged = { events: staged.events + batch.events, bytes: staged.bytes + batch.bytes };
    this.waiting.batch = { events: 0, bytes: 0 };
    this.batch = [];
  }

  private async versionsThere(): Promise<Map<string, number>> {
    const keys = new Map(this.batch.map((piece) => [keyOf(piece), piece]));
    const streams = [...keys.values()].map(({ tenant, sessionId }) => ({ tenant, streamId: sessionId }));
    const versions = await this.store.streams.versions(streams);
    return new Map(
      [...keys.keys()].flatMap((key, index) => (versions[index] ? [[key, versions[index]]] : [])),
    );
  }

  /** @throws ImportRefused unless the database has the same events of the session */
  private async compare(piece: SessionPiece, version: number): Promise<void> {
    const stream = { tenant: piece.tenant, streamId: piece.sessionId };
    const [first, last] = [piece.events[0], piece.events.at(-1)];
    if (!first || !last) return;
    const found = await this.store.streams.read(stream, {
      from: first.version,
      to: last.version,
      erasedToo: true,
    });
    const same = found.length === piece.events.length && isDeepStrictEqual(found.map(exported), piece.events);
    if (!same) {
      throw new ImportRefused(`${keyOf(piece)} exists with other events (it is at version ${version} there)`);
    }
  }

  private async commit(): Promise<void> {
    const streams = this.staged;
    const { events } = this.waiting.staged;
    this.staged = [];
    this.waiting.staged = { events: 0, bytes: 0 };
    if (!this.log) return;
    if (streams.length > 0) {
      const done = await this.log.commit(streams, STATE_VERSION);
      const taken = streams.find((_, index) => !done[index]);
      if (taken) {
        throw new ImportRefused(
          `${taken.tenant}/${taken.streamId} was made by somebody else meanwhile; start the import again`,
        );
      }
    }
    this.onProgress?.(events);
  }
}

const keyOf = ({ tenant, sessionId }: { tenant: string; sessionId: string }): string =>
  `${tenant}/${sessionId}`;

/** The events that close an active session, which get their times at the commit, and the stream that they lead to. */
function closing({ state, time, createdAt, lastActivityAt }: SessionFold): {
  events: ImportedEvent[];
  stream: Omit<ImportedStream, 'tenant' | 'streamId'>;
} {
  const events: SessionEvent[] = [];
  if (state.generation) {
    const { id, model } = state.generation;
    const message = 'the session was imported while it was generating';
    events.push({ type: 'GenerationFailed', data: { generationId: id, model, code: 'imported', message } });
  }
  if (state.status === 'active') {
    events.push({ type: 'SessionExpired', data: { reason: 'import', lastActivityAt } });
  }
  const closed = events.reduce((before, event) => sessionDecider.evolve(before, event), state);
  return {
    events: events.map((event, index) => ({
      ...event,
      ...BY,
      id: randomUUID(),
      schemaVersion: sessionEvents[event.type].version,
      incarnation: state.incarnation,
      version: state.version + index + 1,
      time: null,
      causationId: null,
    })),
    stream: {
      version: closed.version,
      incarnation: closed.incarnation,
      time,
      createdAt,
      lastActivityAt,
      stamped: events.length === 0 ? false : events.some(isActivity) ? 'use' : 'no use',
      state: closed,
    },
  };
}
