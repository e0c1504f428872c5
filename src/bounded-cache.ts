import { LRUCache } from 'lru-cache';

/**
 * A cache of at most so many entries: those that were used last. It needs memory for what it holds. With `max`, lru-cache
 * takes the memory of all entries at once, some megabytes for each of the larger caches, of which every cell has its own.
 *
 * @param times for entries that run out
 */
export const boundedCache = <Key extends string, Value extends object | number>(
  entries: number,
  times: Pick<
    LRUCache.OptionsBase<Key, Value, unknown>,
    'ttl' | 'ttlAutopurge' | 'ttlResolution' | 'perf'
  > = {},
): LRUCache<Key, Value> => new LRUCache({ ...times, maxSize: entries, sizeCalculation: () => 1 });
