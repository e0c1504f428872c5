import { ColloquyError, Connection } from '../client/connection.js';

export interface ServiceOptions {
  readonly url: string;
  readonly key?: string;
  /** For operators, and where no key is needed. */
  readonly tenant?: string;
  /** For operators: the cell that is asked, where the question is not about a tenant. */
  readonly cell?: string;
}

/** The service cannot be reached; the message names its address. */
export class Unreachable extends Error {
  override readonly name = 'Unreachable';
}

/** Requests to a running service. They throw ColloquyError or Unreachable. */
export function connectionOf({ url, key, tenant, cell }: ServiceOptions): Connection {
  const base = url.replace(/\/+$/, '');
  return new Connection(
    async (path, init) => {
      try {
        return await fetch(base + path, init);
      } catch (error) {
        const { cause, message } = error as Error;
        throw new Unreachable(
          `${base} cannot be reached: ${(cause as Error | undefined)?.message ?? message}`,
        );
      }
    },
    {
      ...(key && { authorization: `Bearer ${key}` }),
      ...(tenant && { 'colloquy-tenant': tenant }),
      ...(cell && { 'colloquy-cell': cell }),
    },
  );
}

export type Query = Readonly<Record<string, string | number | undefined>>;

/** The query string of the parameters that are given, e.g. `?a=1&b=2`. */
export function queryOf(query: Query): string {
  const given = new URLSearchParams();
  for (const [name, value] of Object.entries(query)) if (value !== undefined) given.set(name, String(value));
  return given.size === 0 ? '' : `?${given.toString()}`;
}

/** The rows of a list, page by page, at most `limit` rows. */
export async function* listed<Row>(
  connection: Connection,
  path: string,
  query: Query,
  limit: number,
  /** The parameter that takes `nextCursor`. */
  next: 'after' | 'cursor',
): AsyncGenerator<Row[]> {
  let left = limit;
  let place: Query = {};
  while (left > 0) {
    const page = await connection.json<{ data: Row[]; nextCursor: string | null }>(
      'GET',
      path + queryOf({ ...query, ...place, limit: Math.min(left, 200) }),
    );
    // With a filter, pages before the last one may be empty.
    if (page.data.length > 0) yield page.data;
    left -= page.data.length;
    if (page.nextCursor === null) return;
    place = { [next]: page.nextCursor };
  }
}

const LONGEST_PAUSE_MS = 5_000;

/**
 * Follows a stream of events without end. A lost connection is opened again with `Last-Event-ID`, where it ended.
 * @param onLost called once per lost connection
 * @throws ColloquyError for what trying again cannot mend; whatever the first try throws
 */
export async function* followed<Row>(
  connection: Connection,
  path: string,
  onLost: (error: Error) => void,
): AsyncGenerator<Row> {
  let last: string | undefined;
  let failures = 0;
  let wasConnected = false;
  for (;;) {
    try {
      const headers = last === undefined ? {} : { 'last-event-id': last };
      for await (const event of connection.events('GET', path, { headers })) {
        failures = 0;
        wasConnected = true;
        if (event.id !== '') last = event.id;
        yield event.data as Row;
      }
      wasConnected = true;
    } catch (error) {
      const isFinal = error instanceof ColloquyError && error.status < 500;
      if (isFinal || !wasConnected) throw error;
      if (failures === 0) onLost(error as Error);
    }
    failures += 1;
    await new Promise((resolve) => setTimeout(resolve, Math.min(100 * 2 ** failures, LONGEST_PAUSE_MS)));
  }
}
