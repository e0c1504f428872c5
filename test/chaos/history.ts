/*
 * What clients have seen, in the manner of Jepsen: each operation has the moments between which it took effect, if it
 * did, and one of three outcomes. `unknown`: no answer came, or one that does not tell whether it took effect.
 */

export type Outcome = 'ok' | 'fail' | 'unknown';

/** A text that is sent once, so that what it did can be found again. The letter is that of its tenant. */
export const TOKEN = /tk([a-z])\d+n\d+z/g;

export interface Write {
  readonly kind: 'write';
  readonly what: string;
  readonly tenant: string;
  readonly session: string;
  /** In the texts of what was written; every one of them belongs to a message of the user. */
  readonly tokens: readonly string[];
  readonly key: string | undefined;
  readonly begunAt: number;
  readonly endedAt: number;
  readonly outcome: Outcome;
  readonly status: number;
  /** Of the session after the write, if the answer tells. */
  readonly version: number | undefined;
}

export interface Read {
  readonly kind: 'read';
  readonly what: string;
  readonly tenant: string;
  readonly session: string | undefined;
  readonly begunAt: number;
  readonly endedAt: number;
  readonly status: number;
  /** The version of the session, of a read of one session. */
  readonly version?: number;
  /** The tokens of the messages of users, of a read of messages. */
  readonly tokens?: readonly string[];
  /** Whether there may be older messages that the answer leaves out. */
  readonly isPartial?: boolean;
  /** The sessions of a list. */
  readonly sessions?: readonly string[];
  /** The token that was searched for. */
  readonly word?: string;
}

export interface Foreign {
  readonly kind: 'foreign';
  readonly what: string;
  readonly tenant: string;
  readonly text: string;
}

export type Operation = Write | Read | Foreign;

/** Of one process: moments can be compared. */
export const now = (): number => performance.now();
