import { type SessionRef } from '../sessions/command-context.js';
import { type LiveReply } from './live-reply.js';

/** A generation whose model call runs in this process. */
export interface RunningGeneration {
  readonly session: SessionRef;
  readonly lane: number;
  readonly reply: LiveReply;
  /** Aborts the model call. The reason of the abort decides what is recorded: see `Superseded` and `serviceStopped`. */
  readonly controller: AbortController;
}
