import { Injectable } from '@nestjs/common';
import { z } from 'zod';
import { exists, type SessionState } from '../domain/session.state.js';
import { EventLog } from '../event-store/log.js';
import { type Loaded } from '../event-store/stream-states.js';
import { ApiError, type InputError, invalidRequest } from '../http/problem.js';
import { decodeCursor, encodeCursor } from '../http/cursor.js';
import {
  type HistoryPage,
  type PageOfHistory,
  readHistory,
  readHistoryIfUnmoved,
} from '../read-models/history.projection.js';
import { Erased } from '../event-store/refusals.js';
import { ReadModels, type Freshness } from '../projection-engine/strong-reads.js';
import { findSession, listForks, listSessions, type SessionView } from '../read-models/session-views.js';
import { sessionUsage, type UsageView } from '../read-models/usage.projection.js';
import { tenantUsage } from '../read-models/tenant-usage.js';
import { type Reach, refTo, type SessionRef } from './command-context.js';
import { notFound, SessionCommands } from './session-commands.js';
import {
  type ListForksQuery,
  type ListMessagesQuery,
  type ListSessionsQuery,
  MAX_VERSION,
  type SessionAnswer,
  SessionCursor,
  type TenantUsage,
  type TenantUsageQuery,
} from './session.schemas.js';
import { TenantPolicies } from './tenant-policies.js';

type Consistency = 'strong' | 'eventual';
const EVENTUAL: Freshness = 'eventual';

/** Where a page of messages ended, and in which history: after a reset, the cursor of the old history is refused. */
const version = z.int().positive().max(MAX_VERSION);
const MessageCursor = z.strictObject({ start: version, at: version.nullable(), after: version });

/** Queries on sessions, answered from the read models and the log. */
@Injectable()
export class SessionQueries {
  constructor(
    private readonly store: EventLog,
    private readonly models: ReadModels,
    private readonly commands: SessionCommands,
    private readonly policies: TenantPolicies,
  ) {}

  /** The answer to a command, made from the state that it left, so that it does not depend on a read model. */
  answer({ tenant, sessionId }: SessionRef, { state, ...times }: Loaded<SessionState>): SessionAnswer {
    if (state.status !== 'active' && state.status !== 'expired') throw notFound();
    return this.present(tenant, {
      id: sessionId,
      status: state.status,
      owner: state.owner,
      title: state.title,
      metadata: state.metadata,
      messageCount: state.messageCount,
      version: state.version,
      createdAt: times.createdAt,
      lastActivityAt: times.lastActivityAt,
      usage: state.usage,
      ...(state.forkedFrom && { forkedFrom: state.forkedFrom }),
    });
  }

  /**
   * A strong read needs no read model: the state of the session is the answer.
   * @throws DomainError `session-not-found`, ProjectionLagging
   */
  async find(session: SessionRef, consistency: Consistency): Promise<SessionAnswer> {
    if (consistency === 'strong') return this.answer(session, await this.existing(session));
    const { tenant, sessionId } = session;
    const found = await findSession(this.models, EVENTUAL, tenant, sessionId);
    if (!found || (session.ownedBy !== null && found.owner !== session.ownedBy)) throw notFound();
    return this.present(tenant, found);
  }

  async list(
    reach: Reach,
    query: z.infer<typeof ListSessionsQuery>,
  ): Promise<{ data: SessionAnswer[]; nextCursor: string | null }> {
    const { status, limit, cursor, order, q, owner: asked, consistency, ...others } = query;
    const { tenant } = reach;
    const metadata = metadataFilter(others);
    const owner = ownerIn(reach, asked);
    if (owner === NOBODY) return { data: [], nextCursor: null };
    const scope = cursorScope(
      // Cursors that were given out before there was an order are still good.
      ['sessions', tenant, status, q ?? null, metadata, ...(order === 'asc' ? [] : [order])],
      owner,
    );
    const after = cursor === undefined ? undefined : decodeCursor(scope, cursor, SessionCursor);
    const wanted = consistency === 'strong' ? await this.models.ends() : EVENTUAL;
    const found = await listSessions(this.models, wanted, tenant, {
      status,
      order,
      q,
      owner,
      metadata,
      after,
      limit: limit + 1,
    });
    return this.page(tenant, found, limit, scope);
  }

  /**
   * The sessions within reach by creation time and id.
   * @param behind the id of the last session of the page before
   * @throws DomainError `session-not-found` for an id that no session has
   */
  async listBehind(
    reach: Reach,
    { behind, limit }: { readonly behind?: string | undefined; readonly limit: number },
  ): Promise<{ data: SessionAnswer[]; hasMore: boolean }> {
    const { tenant, ownedBy } = reach;
    const last = behind === undefined ? undefined : await this.existing(refTo(reach, behind));
    const after = last && behind !== undefined ? { createdAt: last.createdAt, id: behind } : undefined;
    const filter = { status: 'all' as const, owner: ownedBy ?? undefined, after, limit: limit + 1 };
    const found = await listSessions(this.models, await this.models.ends(), tenant, filter);
    return {
      data: found.slice(0, limit).map((session) => this.present(tenant, session)),
      hasMore: found.length > limit,
    };
  }

  /**
   * The sessions that were forked from an incarnation of a session.
   * @throws DomainError `session-not-found`
   */
  async forks(
    session: SessionRef,
    { limit, cursor, consistency, incarnation: named }: z.infer<typeof ListForksQuery>,
  ): Promise<{ data: SessionAnswer[]; nextCursor: string | null }> {
    const { tenant, sessionId } = session;
    const scope = cursorScope(['forks', { tenant, sessionId }, named ?? null], session.ownedBy);
    const after = cursor === undefined ? undefined : decodeCursor(scope, cursor, SessionCursor);
    const { state } = await this.commands.load(session);
    const incarnation = incarnationIn(state, named);
    const wanted = consistency === 'strong' ? await this.models.ends() : EVENTUAL;
    const stream = { tenant, streamId: sessionId };
    const before = await this.store.streams.lastVersion(stream, incarnation - 1);
    const last = await this.store.streams.lastVersion(stream, incarnation);
    const found = await listForks(
      this.models,
      wanted,
      tenant,
      { sessionId, from: (before?.version ?? 0) + 1, to: last?.version ?? 0 },
      { after, limit: limit + 1, owner: session.ownedBy ?? undefined },
    );
    return this.page(tenant, found, limit, scope);
  }

  /**
   * A page of messages of the present history, or of the history at a version or time.
   * @throws DomainError `session-not-found`; Erased; ApiError `cursor-expired` when the history was reset or deleted since
   */
  async messages(
    session: SessionRef,
    query: z.infer<typeof ListMessagesQuery>,
  ): Promise<{ messages: string; nextCursor: string | null; version: number }> {
    const { order, limit, consistency } = query;
    const { tenant, sessionId, ownedBy } = session;
    const scope = cursorScope(
      ['messages', { tenant, sessionId }, order, query.at ?? null, query.incarnation ?? null],
      ownedBy,
    );
    const cursor = query.cursor === undefined ? undefined : decodeCursor(scope, query.cursor, MessageCursor);
    const past = query.at !== undefined || query.incarnation !== undefined;
    const asked = { ...session, after: cursor?.after, order, limit };

    const unmoved = past || consistency !== 'strong' ? undefined : await this.unmovedPage(session, asked);
    let page = unmoved?.page;
    let at = unmoved?.at ?? 0;
    if (!unmoved) {
      const loaded = await this.commands.load(session);
      const { state } = loaded;
      const isGone = query.incarnation === undefined && !exists(state) && state.version > 0;
      if (cursor && isGone) throw cursorExpired();
      const incarnation = incarnationIn(state, query.incarnation);
      at =
        cursor?.at ??
        (past ? (await this.pointAt(session, { ...state, incarnation }, query.at)).version : state.version);
      // The log has the version `at` at which the history ends, so a strong read waits until the read model has it as
      // well.
      const wanted = consistency === 'strong' ? endOf(loaded) : EVENTUAL;
      page = await readHistory(this.models, wanted, { ...asked, incarnation, at });
    }
    if (cursor && cursor.start !== page?.start) throw cursorExpired();
    const next = page?.hasMore && { start: page.start, at: past ? at : null, after: page.last };
    return {
      messages: page?.messages ?? '[]',
      nextCursor: next ? encodeCursor(scope, next) : null,
      version: at,
    };
  }

  /**
   * A page of messages of the present history, of all that was written before.
   * @param after version of the last message of the page before
   * @throws DomainError `session-not-found`
   */
  async messagePage(
    session: SessionRef,
    page: Pick<PageOfHistory, 'order' | 'limit' | 'after'>,
  ): Promise<HistoryPage | undefined> {
    const asked = { ...session, ...page };
    const unmoved = await this.unmovedPage(session, asked);
    if (unmoved) return unmoved.page;
    const loaded = await this.existing(session);
    const { incarnation, version: at } = loaded.state;
    return readHistory(this.models, endOf(loaded), { ...asked, incarnation, at });
  }

  /** A page of the history as this process knows it; undefined when it does not, or when the session has gone on. */
  private async unmovedPage(
    session: SessionRef,
    asked: Omit<PageOfHistory, 'incarnation' | 'at'>,
  ): Promise<{ readonly page: HistoryPage | undefined; readonly at: number } | undefined> {
    const known = this.commands.known(session);
    if (!known || !exists(known.state)) return undefined;
    const { incarnation, version: at } = known.state;
    const end = { ...known, version: at };
    const page = await readHistoryIfUnmoved(this.models, end, { ...asked, incarnation, at });
    return page === 'moved' ? undefined : { page, at };
  }

  /**
   * The last event of an incarnation at a version or time, or now.
   * @param pointer names the parameter in an error
   * @param of the incarnation, and what the session knows of its erasure
   * @throws ApiError `invalid-request` when the version or time is outside the incarnation; Erased
   */
  async pointAt(
    { tenant, sessionId }: SessionRef,
    { incarnation, erasedUpTo = 0 }: Pick<SessionState, 'incarnation' | 'erasedUpTo'>,
    at: number | string | undefined,
    { pointer, in: part }: Pick<InputError, 'pointer' | 'in'> = { pointer: '/at', in: 'query' },
  ): Promise<{ readonly version: number; readonly time: string }> {
    const wanted = typeof at === 'number' ? { version: at } : at === undefined ? {} : { time: at };
    const last = await this.store.streams.lastVersion({ tenant, streamId: sessionId }, incarnation, wanted);
    if (!last || (typeof at === 'number' && at !== last.version)) {
      throw invalidRequest([
        { pointer, in: part, detail: `is not inside incarnation ${incarnation} of the session` },
      ]);
    }
    // The erasure itself is no secret.
    if (last.version < erasedUpTo) throw new Erased(last.version);
    return last;
  }

  async usage(session: SessionRef, consistency: Consistency): Promise<UsageView[]> {
    const loaded = await this.existing(session);
    const wanted = consistency === 'strong' ? endOf(loaded) : EVENTUAL;
    return sessionUsage(this.models, wanted, session.tenant, session.sessionId);
  }

  /** What the sessions within reach have used, through all of their incarnations and also when they are deleted. */
  async usageOf(
    reach: Reach,
    { owner: asked, consistency, ...query }: z.infer<typeof TenantUsageQuery>,
  ): Promise<z.infer<typeof TenantUsage>> {
    const { from, to } = query;
    const owner = ownerIn(reach, asked);
    if (owner === NOBODY) return { from, to, data: [] };
    const wanted = consistency === 'strong' ? await this.models.ends() : EVENTUAL;
    return { from, to, data: await tenantUsage(this.models, wanted, reach.tenant, { ...query, owner }) };
  }

  async approvals(session: SessionRef): Promise<SessionState['approvals']> {
    return (await this.existing(session)).state.approvals;
  }

  /** The position of a command's last event, as clients see it. */
  positionOf({ lane, position }: Loaded<unknown>): string {
    return this.store.positionOf({ lane, position });
  }

  /** The position of a session's event, as clients see it. */
  async positionAt(session: SessionRef, version: number): Promise<string> {
    const stream = { tenant: session.tenant, streamId: session.sessionId };
    const [event] = await this.store.streams.read(stream, { from: version, to: version });
    if (!event) throw new Error(`version ${version} of ${session.sessionId} is not in the log`);
    return this.store.positionOf({ lane: event.lane, position: event.position });
  }

  private async existing(session: SessionRef): Promise<Loaded<SessionState>> {
    const loaded = await this.commands.load(session);
    if (!exists(loaded.state)) throw notFound();
    return loaded;
  }

  private page(
    tenant: string,
    found: readonly SessionView[],
    limit: number,
    scope: string,
  ): { data: SessionAnswer[]; nextCursor: string | null } {
    const page = found.slice(0, limit);
    const last = page.at(-1);
    return {
      data: page.map((session) => this.present(tenant, session)),
      nextCursor:
        last && found.length > limit ? encodeCursor(scope, { createdAt: last.createdAt, id: last.id }) : null,
    };
  }

  private present(tenant: string, session: SessionView): SessionAnswer {
    const { id, status, owner, title, lastActivityAt, usage, forkedFrom } = session;
    const { sessionTTL } = this.policies.of(tenant);
    const answer: SessionAnswer = {
      id,
      status,
      title,
      metadata: session.metadata as SessionAnswer['metadata'],
      messageCount: session.messageCount,
      version: session.version,
      createdAt: session.createdAt,
      lastActivityAt,
      expiresAt: status === 'active' ? new Date(Date.parse(lastActivityAt) + sessionTTL).toISOString() : null,
      usage,
    };
    // Written out, and with what may be absent at the end: to spread it cost a tenth of the read of one session (measured).
    if (owner !== null) answer.owner = owner;
    if (forkedFrom) answer.forkedFrom = forkedFrom;
    return answer;
  }
}

/** What a cursor is for; one that was given out before there were owners is still good. */
export const cursorScope = (of: readonly unknown[], owner: string | null | undefined): string =>
  JSON.stringify(owner === null || owner === undefined ? of : [...of, owner]);

export const NOBODY = Symbol('nobody');

/** The owner whose sessions a request is about: `asked` for, but no other than the one within reach. */
export function ownerIn({ ownedBy }: Reach, asked: string | undefined): string | typeof NOBODY | undefined {
  if (ownedBy === null) return asked;
  return asked === undefined || asked === ownedBy ? ownedBy : NOBODY;
}

/**
 * The incarnation of a request: the one that it names, or else the present one.
 * @throws DomainError `session-not-found` when there is none. An ended incarnation is found only when it is named.
 */
export function incarnationIn(state: SessionState, named: number | undefined): number {
  const isKnown = named === undefined ? exists(state) : named <= state.incarnation;
  if (!isKnown) throw notFound();
  return named ?? state.incarnation;
}

/** The freshness that a strong read of one session asks for. */
export const endOf = ({ lane, position }: Loaded<unknown>): Freshness => new Map([[lane, position]]);

const cursorExpired = (): ApiError =>
  new ApiError(
    'cursor-expired',
    'the history was reset or deleted since this cursor was given out; begin anew',
  );

/** The parameters `metadata.<key>=<value>` by key. Other parameters are refused. */
function metadataFilter(parameters: Record<string, string>): Record<string, string> {
  const PREFIX = 'metadata.';
  const unknown = Object.keys(parameters).filter((name) => !name.startsWith(PREFIX) || name === PREFIX);
  if (unknown.length > 0) {
    throw invalidRequest(
      unknown.map((name) => ({ pointer: `/${name}`, in: 'query', detail: 'is not a known parameter' })),
    );
  }
  return Object.fromEntries(
    Object.entries(parameters).map(([name, value]) => [name.slice(PREFIX.length), value]),
  );
}
