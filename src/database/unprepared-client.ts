import { Client, type QueryConfig } from 'pg';

/**
 * A connection through a pooler in transaction mode, where each transaction may meet another session of the server. What
 * one of them has prepared is unknown to the next, so nothing is prepared under a name.
 */
export class UnpreparedClient extends Client {
  /** In all forms that the driver has. Only a statement in the first place has a name, and one that sends itself has none. */
  override query = ((statement: unknown, ...rest: unknown[]): unknown => {
    const unnamed =
      typeof statement === 'object' && statement !== null && 'name' in statement && !('submit' in statement)
        ? { ...(statement as QueryConfig), name: undefined }
        : statement;
    return (Client.prototype.query as (...all: unknown[]) => unknown).call(this, unnamed, ...rest);
  }) as Client['query'];
}
