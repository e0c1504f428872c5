import { type Pool } from 'pg';
import { arrayLiteral, bytesArray } from '../database/array-literal.js';
import { rowsOf } from '../database/query.js';
import { edgeOf, nameOf, type Tile, type TilePlace, TreeEdge } from './tiles.js';

/** How far the tree of a lane is. */
export interface Head {
  readonly lane: number;
  /** Number of leaves, and so the position of the last event. */
  readonly size: number;
  readonly root: Buffer;
}

/** A step by which the tree of a lane grows, or is signed. */
export interface Step {
  readonly from: Head;
  readonly to: Head;
  readonly tiles: readonly Tile[];
  /** The signed checkpoint at its end, if there is one. */
  readonly note: string | undefined;
}

export interface SignedCheckpoint {
  readonly lane: number;
  readonly size: number;
  readonly note: string;
  /** When it was signed, RFC 3339. */
  readonly time: string;
}

/** Where the trees of the lanes are kept. */
export class MerkleStore {
  constructor(private readonly pool: Pool) {}

  heads(lanes: Iterable<number>): Promise<Head[]> {
    return rowsOf<Head>(this.pool, {
      name: 'merkle_heads',
      text: 'select lane, size, root from merkle_lane where lane = any ($1)',
      values: [[...lanes]],
    });
  }

  /** The right edges of trees, from which they can grow. */
  async edges(heads: readonly Head[]): Promise<Map<number, TreeEdge>> {
    const places = heads.flatMap(({ lane, size }) => edgeOf(size).map((place) => ({ ...place, lane })));
    const tiles = await this.tilesAt(places);
    return new Map(
      heads.map(({ lane, size }) => [
        lane,
        new TreeEdge(
          size,
          tiles.filter((tile) => tile.lane === lane),
        ),
      ]),
    );
  }

  /** @returns name → hashes, for those that there are */
  async tiles(lane: number, places: readonly TilePlace[]): Promise<Map<string, Buffer>> {
    const tiles = await this.tilesAt(places.map((place) => ({ ...place, lane })));
    return new Map(tiles.map((tile) => [nameOf(tile), tile.hashes]));
  }

  private tilesAt(
    places: readonly (TilePlace & { readonly lane: number })[],
  ): Promise<(Tile & { readonly lane: number })[]> {
    if (places.length === 0) return Promise.resolve([]);
    return rowsOf(this.pool, {
      name: 'merkle_tiles',
      text: `select t.lane, t.level, t.index, t.hashes
             from unnest($1::smallint[], $2::smallint[], $3::bigint[]) as w (lane, level, index)
             join merkle_tile t on t.lane = w.lane and t.level = w.level and t.index = w.index`,
      values: [
        places.map(({ lane }) => lane),
        places.map(({ level }) => level),
        places.map(({ index }) => index),
      ],
    });
  }

  /**
   * Takes steps, each of them whole or not at all.
   * @returns the lanes whose trees were where the step begins
   */
  async take(steps: readonly Step[]): Promise<Set<number>> {
    if (steps.length === 0) return new Set();
    const tiles = steps.flatMap(({ to: { lane }, tiles: of }) => of.map((tile) => ({ ...tile, lane })));
    const rows = await rowsOf<{ lane: number }>(this.pool, {
      name: 'merkle_steps',
      text: `with taken as (
               update merkle_lane l set size = s.size, root = s.root
               from unnest($1::smallint[], $2::bigint[], $3::bytea[], $4::bigint[], $5::bytea[], $6::text[])
                    as s (lane, before, root_before, size, root, note)
               where l.lane = s.lane and l.size = s.before and l.root = s.root_before
               returning l.lane, l.size, s.note
             ), kept as (
               insert into merkle_tile (lane, level, index, hashes)
               select t.* from unnest($7::smallint[], $8::smallint[], $9::bigint[], $10::bytea[])
                               as t (lane, level, index, hashes)
               where t.lane in (select lane from taken)
               on conflict (lane, level, index) do update set hashes = excluded.hashes
             ), signed as (
               insert into signed_checkpoint (lane, size, note)
               select lane, size, note from taken where note is not null
               on conflict do nothing
             ) select lane from taken`,
      values: [
        arrayLiteral(steps.map(({ to }) => to.lane)),
        arrayLiteral(steps.map(({ from }) => from.size)),
        bytesArray(steps, ({ from }) => from.root),
        arrayLiteral(steps.map(({ to }) => to.size)),
        bytesArray(steps, ({ to }) => to.root),
        arrayLiteral(steps.map(({ note }) => note)),
        arrayLiteral(tiles.map(({ lane }) => lane)),
        arrayLiteral(tiles.map(({ level }) => level)),
        arrayLiteral(tiles.map(({ index }) => index)),
        bytesArray(tiles, ({ hashes }) => hashes),
      ],
    });
    return new Set(rows.map(({ lane }) => lane));
  }

  /** The last checkpoint of each lane that has one. */
  latest(): Promise<SignedCheckpoint[]> {
    return rowsOf(this.pool, {
      text: `select c.lane, c.size, c.note, c.time from merkle_lane l
             cross join lateral (
               select * from signed_checkpoint c where c.lane = l.lane order by c.size desc limit 1
             ) c order by c.lane`,
    });
  }

  /** The checkpoints of a lane behind a size, in order. */
  checkpoints(lane: number, after: number, limit: number): Promise<SignedCheckpoint[]> {
    return rowsOf(this.pool, {
      text: `select lane, size, note, time from signed_checkpoint
             where lane = $1 and size > $2 order by size limit $3`,
      values: [lane, after, limit],
    });
  }

  /** The checkpoint of a lane at a size. */
  async checkpoint(lane: number, size: number): Promise<SignedCheckpoint | undefined> {
    const [found] = await this.checkpoints(lane, size - 1, 1);
    return found?.size === size ? found : undefined;
  }
}
