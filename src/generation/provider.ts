/** A model as its provider lists it. */
export interface ListedModel {
  readonly id: string;
  readonly created: number;
  readonly ownedBy: string;
}

/** An answer of the provider, as it came. */
export interface Forwarded {
  readonly status: number;
  readonly contentType: string;
  /** The text of an error, else the bytes as they arrive. */
  readonly body: string | NodeJS.ReadableStream;
}

/** What the provider of the models does besides answering. */
export interface Provider {
  /** @throws ModelError when they cannot be had */
  models(): Promise<readonly ListedModel[]>;
  /**
   * Sends a body of the chat completions API on as it is.
   * @throws ModelError when there is no answer; the reason of `signal` when it aborts
   */
  forward(body: object, signal: AbortSignal): Promise<Forwarded>;
}

/** Token of the `Provider`; null without one. */
export const PROVIDER = 'PROVIDER';
