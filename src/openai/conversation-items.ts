import { Injectable } from '@nestjs/common';
import { boundedCache } from '../bounded-cache.js';
import { streamKey } from '../event-store/lane.js';
import { ApiError } from '../http/problem.js';
import { type MessageView } from '../read-models/history.projection.js';
import { type SessionRef } from '../sessions/command-context.js';
import { SessionQueries } from '../sessions/session-queries.js';
import { type Item, itemsOf } from './items.js';

/** Where an item is: the version of its message, and its place among the items of that. */
interface ItemPlace {
  readonly version: number;
  readonly index: number;
}

/** An item and the message that it is of. */
export interface FoundItem extends ItemPlace {
  readonly item: Item;
  readonly message: MessageView;
}

/** A page of things with ids. */
export interface Page<Thing> {
  readonly object: 'list';
  readonly data: Thing[];
  readonly first_id: string | null;
  readonly last_id: string | null;
  readonly has_more: boolean;
}

export type ItemPage = Page<Item>;

export interface PageOfItems {
  readonly after?: string | undefined;
  readonly limit: number;
  readonly order: 'asc' | 'desc';
}

/** Messages that are read at once while an item is looked for. */
const SEARCH_PAGE = 200;
/** Items with which pages have ended, so that the next page need not look for its place. */
const REMEMBERED = 10_000;

/** The items of the present history of a session. */
@Injectable()
export class ConversationItems {
  private readonly places = boundedCache<string, ItemPlace>(REMEMBERED);

  constructor(private readonly queries: SessionQueries) {}

  /** @throws DomainError `session-not-found`; ApiError `invalid-request` when `after` is none of the items */
  async page(session: SessionRef, { after, limit, order }: PageOfItems): Promise<ItemPage> {
    const place = after === undefined ? undefined : await this.placeOf(session, after);
    const found: FoundItem[] = [];
    // The message of the last item may have more of them.
    const messages = this.messages(session, order, limit + 2, place && before(place.version, order));
    for await (const message of messages) {
      found.push(...inOrder(order, placed(message)).filter((one) => !place || isBehind(order, one, place)));
      if (found.length > limit) break;
    }
    const shown = found.slice(0, limit);
    const last = shown.at(-1);
    if (last) this.places.set(this.keyOf(session, last.item.id), last);
    return pageOf(
      shown.map(({ item }) => item),
      found.length > limit,
    );
  }

  /** @throws DomainError `session-not-found`; ApiError `not-found` */
  async find(session: SessionRef, itemId: string): Promise<FoundItem> {
    for await (const message of this.messages(session, 'desc', SEARCH_PAGE)) {
      const found = placed(message).find(({ item }) => item.id === itemId);
      if (found) return found;
    }
    throw new ApiError('not-found', `Item with id '${itemId}' not found in this conversation.`);
  }

  private async placeOf(session: SessionRef, itemId: string): Promise<ItemPlace> {
    return this.places.get(this.keyOf(session, itemId)) ?? this.find(session, itemId);
  }

  private async *messages(
    session: SessionRef,
    order: 'asc' | 'desc',
    limit: number,
    after?: number,
  ): AsyncGenerator<MessageView> {
    let from = after;
    for (;;) {
      const page = await this.queries.messagePage(session, { order, limit, after: from });
      yield* JSON.parse(page?.messages ?? '[]') as MessageView[];
      if (!page?.hasMore || page.last === null) return;
      from = page.last;
    }
  }

  private keyOf({ tenant, sessionId }: SessionRef, itemId: string): string {
    return `${streamKey({ tenant, streamId: sessionId })} ${itemId}`;
  }
}

const placed = (message: MessageView): FoundItem[] =>
  itemsOf(message).map((item, index) => ({ item, message, version: message.version, index }));

const inOrder = (order: 'asc' | 'desc', items: FoundItem[]): FoundItem[] =>
  order === 'asc' ? items : items.reverse();

/** The version behind which a page begins that has a message first. */
const before = (version: number, order: 'asc' | 'desc'): number => version + (order === 'asc' ? -1 : 1);

function isBehind(order: 'asc' | 'desc', one: ItemPlace, place: ItemPlace): boolean {
  const distance = one.version - place.version || one.index - place.index;
  return order === 'asc' ? distance > 0 : distance < 0;
}

export const pageOf = <Thing extends { readonly id: string }>(
  data: Thing[],
  hasMore: boolean,
): Page<Thing> => ({
  object: 'list',
  data,
  first_id: data[0]?.id ?? null,
  last_id: data.at(-1)?.id ?? null,
  has_more: hasMore,
});
