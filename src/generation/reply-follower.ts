import { type CommandBus } from '@nestjs/cqrs';
import { DomainError } from '../domain/decider.js';
import { generationLease } from '../domain/session.js';
import { AbandonGeneration } from '../domain/session.commands.js';
import { type Leases } from '../event-store/leases.js';
import { type EventLog } from '../event-store/log.js';
import { type CommandContext, type SessionRef } from '../sessions/command-context.js';
import { dispatch } from '../sessions/command-handlers.js';
import { thoughtsOf } from '../sessions/ids.js';
import { type PartialReplies } from '../sessions/partial-replies.js';
import { codeOf } from './generation.errors.js';
import { laneGrowth } from './lane-growth.js';
import { LiveReply, type ReplyEnd } from './live-reply.js';
import { type RecordedReplies, type RecordedStart, type StartedGeneration } from './recorded-replies.js';

/**
 * Milliseconds between two looks for new text of a generation of another node, and the number of looks after which its
 * lease is checked again.
 */
const LOOK_MS = 100;
const LOOKS_PER_LEASE_CHECK = 10;
/** Milliseconds for which a reader waits while the database is unavailable. */
const OUTAGE_MS = 60_000;

/** Follows generations that this node does not run, or that have ended: first their text, then their end. */
export class ReplyFollower {
  /** By generation id: one copy serves all readers of this process. */
  private readonly followed = new Map<string, { readonly session: SessionRef; readonly reply: LiveReply }>();

  constructor(
    private readonly log: EventLog,
    private readonly bus: CommandBus,
    private readonly leases: Leases,
    private readonly partials: PartialReplies,
    private readonly recorded: RecordedReplies,
  ) {}

  /** The copy of a generation that is followed already. */
  find(session: SessionRef, generationId: string): LiveReply | undefined {
    const known = this.followed.get(generationId);
    const isOfSession =
      known?.session.tenant === session.tenant && known.session.sessionId === session.sessionId;
    return isOfSession ? known.reply : undefined;
  }

  follow(session: SessionRef, { actor, correlationId, time, version, data }: RecordedStart): LiveReply {
    const { generationId, model, tools } = data;
    const reply = new LiveReply(session.sessionId, generationId, model, time, version);
    const followed = { session, reply };
    this.followed.set(generationId, followed);
    void this.copy(session, { actor, correlationId }, { generationId, version, tools }, reply).finally(() => {
      if (this.followed.get(generationId) === followed) this.followed.delete(generationId);
    });
    return reply;
  }

  /** The recorded end of a generation that somebody else has ended or is about to. */
  async endOf(session: SessionRef, by: CommandContext, started: StartedGeneration): Promise<ReplyEnd> {
    const reply = new LiveReply(session.sessionId, started.generationId, '', '');
    await this.copy(session, by, started, reply);
    return reply.finished();
  }

  /**
   * Copies what the other node shares and records until the generation has ended. An error becomes the end of the
   * reply, so its readers never wait for ever.
   */
  private async copy(
    session: SessionRef,
    by: CommandContext,
    started: StartedGeneration,
    reply: LiveReply,
  ): Promise<void> {
    const look = this.recorded.search(session, started);
    const lease = generationLease(started.generationId);
    using text = this.partials.reader(started.generationId);
    using thoughts = this.partials.reader(thoughtsOf(started.generationId));
    const take = async (): Promise<void> => {
      const said = await text.next();
      // Thoughts come before the text, and are shared no later than that.
      if (reply.text === '') reply.think(await thoughts.next());
      reply.append(said);
    };
    let deadline = Date.now() + OUTAGE_MS;
    for (let looks = 0; ; looks += 1) {
      const growth = laneGrowth(this.log, session, LOOK_MS);
      try {
        const end = await look();
        if (end) {
          reply.finish(end);
          return;
        }
        if (looks % LOOKS_PER_LEASE_CHECK === 0) await this.recorded.mustBeThere(session, started);
        await take();
        if (looks % LOOKS_PER_LEASE_CHECK === 0 && (await this.leases.standing([lease])).size === 0) {
          await this.abandon(session, by, started.generationId);
        } else {
          // The log does not tell of text, so new text ends the wait as well.
          const isOver = growth.soon.then(() => true);
          const grown = (): Promise<boolean> =>
            Promise.race([text.grown(), thoughts.grown()]).then(() => false);
          while (!(await Promise.race([isOver, grown()]))) await take();
        }
        deadline = Date.now() + OUTAGE_MS;
      } catch (error) {
        if (codeOf(error) !== 'database-unavailable' || Date.now() > deadline) {
          reply.finish({ type: 'failed', error });
          return;
        }
        await growth.soon;
      } finally {
        growth.end();
      }
    }
  }

  /** Fails a generation whose node is gone. The text that had arrived is kept. */
  private async abandon(session: SessionRef, by: CommandContext, generationId: string): Promise<void> {
    const context = { ...by, causationId: generationId, ifMatch: undefined, idempotency: undefined };
    await dispatch(this.bus, session, new AbandonGeneration(generationId), context).catch(
      (error: unknown) => {
        // The session was deleted meanwhile, or the lease was renewed after all. The next look at the log finds the
        // end.
        if (!(error instanceof DomainError)) throw error;
      },
    );
  }
}
