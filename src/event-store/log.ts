import { hash, randomUUID } from 'node:crypto';
import { type Pool } from 'pg';
import { available, connect, createPool } from '../database/connection.js';
import { rowsOf } from '../database/query.js';
import { GENERIC_PLANS } from '../database/server-settings.js';
import { Absences } from './absences.js';
import { type Append, type AppendEvent, type AppendResult, type StreamEnd } from './append.js';
import { BatchWriter, type WriterOptions } from './batch-writer.js';
import { Counters } from './counters.js';
import { CutReader } from './cut-reader.js';
import { endOfTurn } from './end-of-turn.js';
import { EventDecoder, type Upcast } from './event-decoder.js';
import { FeedReader } from './feed-reader.js';
import { KeyedResults } from './keyed-results.js';
import { KnownEnds } from './known-ends.js';
import { rememberedLaneOf, type StreamId } from './lane.js';
import { LaneReader } from './lane-reader.js';
import { LeafReader } from './leaf-reader.js';
import { Leases } from './leases.js';
import { LiveTail } from './live-tail.js';
import { LogImport } from './log-import.js';
import { type GenerationRecord, LogGenerations } from './log-generations.js';
import { LogTail } from './log-tail.js';
import { type EncodedPayload, payloadAt, type PayloadCodec, plainCodec, STATE } from './payload-codec.js';
import { type LanePosition, PositionTokens } from './position-tokens.js';
import { type RecordedEvent } from './recorded-event.js';
import { MovedPositions } from './moved-positions.js';
import { NodeList } from './node-list.js';
import { DataKeys, type KeyOfEvent } from './sealing/data-keys.js';
import { type Cipher, CIPHERS, loadShortTexts } from './sealing/ciphers.js';
import { checkMasterKeys } from './sealing/master-key-use.js';
import { MasterKeys } from './sealing/master-keys.js';
import { SealingCodec } from './sealing/sealing-codec.js';
import { Snapshots } from './snapshots.js';
import { type StateLag, StreamReader } from './stream-reader.js';
import { Stretches } from './stretches.js';
import { type CopiedLog } from './tenant-copy.js';
import { Telemetry } from './telemetry.js';
import { VectorTokens } from './vector-tokens.js';
import { WakeUp } from './wake-up.js';

export interface EventLogOptions extends WriterOptions {
  /**
   * The master keys, each base64 of 32 bytes: the first one seals (unless it is `plain`), all of them open. Without any,
   * payloads are stored as they are, and a log that has sealed ones is not opened.
   */
  readonly masterKeys?: readonly string[] | undefined;
  /** Seals new payloads; default: the first of `CIPHERS`. Payloads of all of them are opened. */
  readonly cipher?: Cipher | undefined;
  /** In place of the codec that follows from the master keys; for tests. */
  readonly codec?: PayloadCodec;
  /** Milliseconds by which keys are kept in memory; for tests. */
  readonly keyClock?: () => number;
  /** Milliseconds without an append after which the log is quiet (`wake-up.ts`); for tests. */
  readonly quietMs?: number;
  /** Receives what happens inside the log; optional. */
  readonly telemetry?: Telemetry;
  /**
   * Connections for reading at the same time; 10 unless given. Two for commits and one for notifications come to them.
   */
  readonly connections?: number;
  /** URL of the same database through a pooler in transaction mode, for reading. */
  readonly pooledUrl?: string | undefined;
  /** Lifts stored data to the current schema version. Without it, data is returned as stored. */
  readonly upcast?: Upcast;
}

/** An append as callers request it: its payloads are not encoded yet, and the log computes its lane. */
export type AppendRequest = Omit<Append, 'lane' | 'state' | 'events'> & {
  readonly state: unknown;
  /** Version of the code that folds the state. */
  readonly stateVersion: number;
  /** As the previous append or load returned it. Without it the state is stored. */
  readonly lag?: StateLag | undefined;
  readonly events: readonly Omit<AppendEvent, 'id' | 'payload'>[];
};

/** An append that is on its way. */
export interface Submitted {
  /** How far the stored state will be behind the stream if the append succeeds. */
  readonly lag: StateLag;
  /** Rejects with Overloaded or DatabaseUnavailable. */
  readonly result: Promise<AppendResult>;
}

export type Appended =
  Exclude<AppendResult, { status: 'ok' }> | ({ readonly status: 'ok'; readonly lag: StateLag } & StreamEnd);

interface LogSettings {
  readonly lanes: number;
  readonly position_key: Buffer;
}

/**
 * An append stores the state when so many events or bytes have come since the last stored state. Storing more often
 * makes appends slower, above all while an old snapshot keeps every dead version of the row, which all have to walk
 * past. Storing less often makes cold loads slower (ADR 0015).
 */
const STATE_EVENTS = 8;
const STATE_BYTES = 64 * 1024;
const NO_LAG: StateLag = { events: 0, bytes: 0 };

/** Timeout of a commit: callers of a database that hangs get an error within five seconds. */
const COMMIT_MS = 4_500;
/** Timeout of a new connection for commits: two tries fit into the same five seconds. */
const COMMIT_CONNECT_MS = 2_000;

/**
 * An append-only log of streams in PostgreSQL.
 *
 * A reader that remembers only (lane, position) misses nothing and reorders nothing: the positions of a lane have no
 * gaps and become visible in order, because each append holds the lane's lock until it is committed.
 */
export class EventLog {
  readonly laneCount: number;
  /** The lane of a stream, which never changes. */
  readonly laneOf: (stream: StreamId) => number;
  readonly streams: StreamReader;
  readonly lanes: LaneReader;
  readonly leaves: LeafReader;
  readonly stretches: Stretches;
  readonly feed: FeedReader;
  readonly cuts: CutReader;
  readonly snapshots: Snapshots;
  readonly keyed: KeyedResults;
  readonly counters: Counters;
  readonly wakeUp: WakeUp;
  readonly live: LiveTail;
  readonly absences: Absences;
  readonly moved: MovedPositions;
  readonly telemetry: Telemetry;
  /** Encrypts and decrypts positions, so that clients see opaque text. */
  readonly positions: PositionTokens;
  /** Encrypts and decrypts the positions of readers of all lanes, so that clients see opaque text. */
  readonly vectors: VectorTokens;
  readonly codec: PayloadCodec;
  /** Whether what is appended from now on is sealed, and not only what is sealed can be read. */
  readonly seals: boolean;
  private readonly dataKeys: DataKeys | undefined;
  private readonly tail = new LogTail<RecordedEvent>();
  private readonly ends = new KnownEnds();
  private readonly writer: BatchWriter;
  /**
   * Number of appends that the codec works on and the writer does not know of yet. They are counted and not kept: a set
   * that much goes through leaves copies of itself in memory, with what was in it (ADR 53).
   */
  private encodings = 0;
  /** Called when there are none of them any more. */
  private onEncoded = (): void => undefined;

  private constructor(
    readonly pool: Pool,
    private readonly url: string,
    private readonly settings: LogSettings,
    /** Tells whether the log is still the one that this process has seen. */
    readonly generations: LogGenerations,
    telemetry: Telemetry,
    options: EventLogOptions,
  ) {
    this.laneCount = settings.lanes;
    this.laneOf = rememberedLaneOf(settings.lanes);
    this.positions = new PositionTokens(settings.position_key);
    this.vectors = new VectorTokens(settings.position_key, settings.lanes);
    this.telemetry = telemetry;
    const masters = new MasterKeys(options.masterKeys ?? []);
    if (!options.codec && masters.ids.length > 0)
      this.dataKeys = new DataKeys(pool, masters, generations, this.laneOf, telemetry, options.keyClock);
    this.seals = masters.seals;
    const cipher = this.seals ? (options.cipher ?? CIPHERS[0]) : undefined;
    this.codec = options.codec ?? (this.dataKeys ? new SealingCodec(this.dataKeys, cipher) : plainCodec);
    generations.onNew(() => {
      this.dataKeys?.forget();
      this.forget();
      this.live.close();
      // Its connection may lead to the former server, and not know yet that nothing comes from there any more.
      this.wakeUp.reconnect();
    });
    const decoder = new EventDecoder(this.codec, options.upcast);
    this.streams = new StreamReader(pool, this.laneOf, decoder);
    this.lanes = new LaneReader(pool, decoder, this.tail);
    this.leaves = new LeafReader(pool, this.laneOf, this.codec);
    this.stretches = new Stretches(pool, this.codec);
    this.feed = new FeedReader(pool, this.laneOf, decoder);
    this.cuts = new CutReader(pool, this.laneOf, decoder);
    this.snapshots = new Snapshots(pool, this.laneOf, this.codec, decoder, generations);
    this.keyed = new KeyedResults(pool);
    this.counters = new Counters(pool);
    const onForeign = (changed: Iterable<number>): void => {
      this.forget(changed);
    };
    this.wakeUp = new WakeUp(
      url,
      settings.lanes,
      onForeign,
      (client) => generations.check(client),
      telemetry,
      options.quietMs,
    );
    this.live = new LiveTail(this.lanes, this.feed, this.tail, this.wakeUp, this.telemetry);
    this.absences = new Absences(pool, () => {
      // Whoever follows an absent tenant has to look for it again.
      this.live.close();
    });
    this.moved = new MovedPositions(pool, settings.position_key, settings.lanes);
    this.writer = this.createWriter(options);
  }

  private createWriter(options: WriterOptions): BatchWriter {
    const { tail, ends } = this;
    return new BatchWriter(
      () =>
        connect(this.url, 'writer', {
          settings: GENERIC_PLANS,
          statementMs: COMMIT_MS,
          connectMs: COMMIT_CONNECT_MS,
        }),
      {
        committed: (appends, run) => {
          tail.enter(run);
          for (const [append, end] of appends) {
            this.generations.appended(append.lane, end.position);
            ends.appended(append, end, run);
            this.remember(append, end);
            if (!append.destroys) continue;
            this.dataKeys?.drop(append.destroys);
            tail.forget([append.lane]);
          }
          this.wakeUp.appended(new Set(appends.map(([{ lane }]) => lane)));
        },
        lost: () => {
          this.forget();
          this.wakeUp.reconnect();
        },
        ends,
        generations: this.generations,
      },
      this.telemetry,
      options,
    );
  }

  /**
   * @param url URL of a migrated database, past any pooler
   * @throws MasterKeyRefused when the log has payloads that none of the master keys opens; nothing was written then
   */
  static async open(url: string, options: EventLogOptions = {}): Promise<EventLog> {
    const { pooledUrl, connections } = options;
    const { telemetry = new Telemetry() } = options;
    let generations: LogGenerations | undefined;
    const pool = createPool(pooledUrl ?? url, 'log', {
      settings: GENERIC_PLANS,
      throughPooler: pooledUrl !== undefined,
      max: connections,
      prepare: async (client) => generations?.check(client),
    });
    try {
      const settings = await readSettings(pool);
      if (!settings) throw new Error('the database has no lane count: it was not migrated');
      const masters = new MasterKeys(options.masterKeys ?? []);
      if (!options.codec) await checkMasterKeys(pool, masters);
      if (masters.ids.length > 0 && options.cipher !== 'aes-256-gcm') await loadShortTexts();
      generations = new LogGenerations(settings.lanes, telemetry);
      await generations.check(pool);
      return new EventLog(pool, url, settings, generations, telemetry, options);
    } catch (error) {
      await pool.end();
      throw error;
    }
  }

  /**
   * Whether connections lead to a database with this log, such as a copy of it.
   *
   * @throws DatabaseUnavailable
   */
  async isIn(pool: Pool, timeoutMs: number): Promise<boolean> {
    const other = await readSettings(pool, timeoutMs);
    return other !== undefined && other.position_key.equals(this.settings.position_key);
  }

  /** Names this log and all copies of it, and tells nothing of its position key: 16 hex digits. */
  get id(): string {
    return hash('sha256', Buffer.concat([Buffer.from('colloquy log'), this.settings.position_key])).slice(
      0,
      16,
    );
  }

  /** Secrets that lie in the database, wrapped by the master key; undefined where there is none. */
  get secrets(): Pick<DataKeys, 'create' | 'get'> | undefined {
    return this.dataKeys;
  }

  /** Waits until accepted appends are answered, then closes the connections. */
  async close(): Promise<void> {
    // The codec may take its time, and an append that came to the writer after its end would connect it again.
    while (this.encodings > 0) {
      await new Promise<void>((resolve) => (this.onEncoded = resolve));
      await endOfTurn();
    }
    await this.writer.close();
    await this.dataKeys?.close();
    this.live.close();
    await this.wakeUp.close();
    await this.pool.end();
  }

  /** Whether payloads are sealed: what they say then stands nowhere outside of them but in read models. */
  get isSealed(): boolean {
    return this.dataKeys !== undefined;
  }

  /**
   * The key that an event is sealed with, for whoever has the sealed bytes.
   * @returns null for a key that was destroyed; undefined where the log has no such event with that key, or its tenant has
   * left the log
   * @throws DatabaseUnavailable, MasterKeyRefused
   */
  keyOfEvent(event: KeyOfEvent): Promise<Buffer | null | undefined> {
    return this.dataKeys?.ofEvent(event) ?? Promise.resolve(undefined);
  }

  /** Number of appends requested since the process started. Deferrable work reads it to see how busy the node is. */
  get appends(): number {
    return this.writer.appends;
  }

  /** The position of an event, as opaque text. In no other generation of the log it is that of another event. */
  positionOf(place: LanePosition): string {
    return this.positions.encode({ ...place, generation: this.generations.of(place) });
  }

  /**
   * All generations of the log, and what is known of what was gone when they began.
   * @throws DatabaseUnavailable
   */
  generationRecords(): Promise<GenerationRecord[]> {
    return available(() => this.generations.records(this.pool));
  }

  /** Whether more appends of the tenant arrive than can be written, so that another command would be `Overloaded`. */
  isBehind(tenant: string): boolean {
    return this.writer.isBehind(tenant);
  }

  /**
   * Appends durably: when the promise resolves, the commit is on disk.
   *
   * @throws Overloaded, DatabaseUnavailable
   */
  async append(request: AppendRequest): Promise<Appended> {
    const { lag, result: underWay } = await this.submit(request);
    const result = await underWay;
    return result.status === 'ok' ? { ...result, lag } : result;
  }

  /**
   * Resolves as soon as the append waits for its commit. Another append to the same stream that is submitted from then
   * on, expects the version which this one leads to, and shares its chain, goes into the same commit; it is refused if
   * this one is.
   */
  async submit(request: AppendRequest): Promise<Submitted> {
    this.encodings += 1;
    try {
      const { append, lag } = await this.encode(request);
      return { lag, result: this.writer.append(append) };
    } finally {
      this.encodings -= 1;
      if (this.encodings === 0) this.onEncoded();
    }
  }

  /** The append as the writer takes it, and how far the stored state is behind the stream when it succeeds. */
  private async encode({
    state,
    stateVersion,
    lag,
    ...append
  }: AppendRequest): Promise<{ append: Append; lag: StateLag }> {
    const { stream, expected, incarnation, begins } = append;
    const { current } = this.generations;
    const codec = append.destroys ? plainCodec : this.codec;
    const payloads = await codec.encode(
      append.events.map(({ type, data }, index) => ({
        tenant: stream.tenant,
        streamId: stream.streamId,
        version: expected + index + 1,
        type,
        incarnation,
        begins,
        data,
      })),
    );
    const events = append.events.map(({ type, schemaVersion, data }, index) => ({
      id: randomUUID(),
      type,
      schemaVersion,
      data,
      payload: payloadAt(payloads, index),
    }));
    const behind = {
      events: (lag?.events ?? 0) + events.length,
      bytes: events.reduce((sum, { payload }) => sum + sizeOf(payload), lag?.bytes ?? 0),
    };
    const isStored =
      !lag || append.expected === 0 || behind.events >= STATE_EVENTS || behind.bytes >= STATE_BYTES;
    const encodedState = isStored
      ? { payload: await this.encodeState(append, state), version: stateVersion }
      : undefined;
    // Its keys are of the generation in which they were looked for, so it must not be committed in a later one, where the
    // database may not have them: it is refused there like one that was decided in an earlier generation, and whoever
    // decides it anew also encodes it anew. See `DataKeys`.
    const generation = append.generation ?? (this.dataKeys && current);
    return {
      append: { ...append, generation, lane: this.laneOf(append.stream), state: encodedState, events },
      lag: isStored ? NO_LAG : behind,
    };
  }

  /** Encodes the state that the append leaves if it succeeds. */
  private async encodeState(
    {
      stream,
      expected,
      incarnation,
      begins,
      events,
      destroys,
    }: Omit<AppendRequest, 'state' | 'stateVersion' | 'lag'>,
    state: unknown,
  ): Promise<EncodedPayload> {
    const { tenant, streamId } = stream;
    const version = expected + events.length;
    const payload = { tenant, streamId, version, type: STATE, incarnation, begins, data: state };
    return payloadAt(await (destroys ? plainCodec : this.codec).encode([payload]), 0);
  }

  /** Remembers what was appended here, so that followers of the log on this node need not read it back. */
  private remember(append: Append, end: StreamEnd): void {
    const { stream, lane, incarnation, actor, correlationId, causationId, events } = append;
    let missing = events.length;
    for (const { id, type, schemaVersion, data, payload } of events) {
      missing -= 1;
      const event = {
        id,
        type,
        schemaVersion,
        tenant: stream.tenant,
        streamId: stream.streamId,
        incarnation,
        version: end.version - missing,
        lane,
        position: end.position - missing,
        time: end.time,
        actor,
        correlationId,
        causationId,
        data,
      };
      this.tail.add(event, sizeOf(payload));
    }
  }

  /** Forgets these lanes, or all of them, because other processes may have appended to them. */
  private forget(lanes?: Iterable<number>): void {
    this.tail.forget(lanes);
    this.ends.forget(lanes);
  }

  /** The database's time, RFC 3339. All times in the log come from this clock. */
  async now(): Promise<string> {
    const [row] = await rowsOf<{ now: string }>(this.pool, { text: 'select colloquy_now() as now' });
    return row?.now ?? '';
  }

  /**
   * The leases of one process, on the connections of the log. Close them before the log.
   *
   * @param owner UUID of the process
   */
  leases(owner: string): Leases {
    return new Leases(this.pool, owner, this.wakeUp, this.telemetry);
  }

  /** @param leases those of this process */
  nodes(leases: Leases, version: string): NodeList {
    return new NodeList(this.pool, leases, version);
  }

  /** This log as one side of a copy of a tenant. */
  copied(): CopiedLog {
    const { pool, laneCount, generations, settings } = this;
    return {
      pool,
      key: settings.position_key,
      laneCount,
      generations,
      grown: (lanes) => {
        this.forget(lanes);
        this.wakeUp.appended(lanes);
      },
    };
  }

  /** Begins an import of whole streams on a connection of its own. The caller must close the import. */
  async beginImport(): Promise<LogImport> {
    // A stream is committed in one piece, and a long one needs a long statement timeout.
    const client = await available(() => connect(this.url, 'import', { statementMs: 600_000 }));
    await available(() => this.generations.check(client));
    return LogImport.begin(client, this.laneCount, this.codec, (lanes) => {
      this.forget(lanes);
      this.wakeUp.appended(lanes);
    });
  }
}

const readSettings = async (pool: Pool, timeoutMs?: number): Promise<LogSettings | undefined> =>
  (await rowsOf<LogSettings>(pool, { text: 'select lanes, position_key from log_settings' }, timeoutMs))[0];

const sizeOf = ({ json, sealed }: EncodedPayload): number => json?.length ?? sealed?.length ?? 0;
