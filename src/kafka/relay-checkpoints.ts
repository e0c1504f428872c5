import { type Pool } from 'pg';
import { available } from '../database/connection.js';

/** A lane as this node has claimed it. */
export interface Claim {
  readonly lane: number;
  /** Grows with every claim of the lane, on any node: a checkpoint is moved only under the latest one. */
  readonly epoch: number;
  /** The last position that the brokers have acknowledged. */
  readonly position: number;
}

/** How far one batch takes the checkpoint of a lane. */
export interface Move {
  /** Of the claim under which the events were read. */
  readonly epoch: number;
  readonly from: number;
  readonly to: number;
}

export interface RecordedTopic {
  readonly topic: string;
  readonly partitions: number;
}

/** What the names of the leases of lanes begin with. */
const LANE_LEASE = 'relay/lane/';
/** A lease must still run for this long, so that it does not end while a batch is being sent. */
const MARGIN_MS = 2_000;

/** The tables of the relay: how far each lane is published, and to which topic. All of its SQL is here. */
export class RelayCheckpoints {
  constructor(
    private readonly pool: Pool,
    /** Owner of this node's leases. */
    private readonly owner: string,
  ) {}

  /** Positions that the brokers have acknowledged, by lane. */
  async positions(): Promise<Map<number, number>> {
    const { rows } = await available(() =>
      this.pool.query<{ lane: number; position: number }>('select lane, position from relay_checkpoint'),
    );
    return new Map(rows.map(({ lane, position }) => [lane, position]));
  }

  /** Claims those of the lanes whose lease this node holds, according to the database. */
  async claim(lanes: readonly number[]): Promise<Claim[]> {
    const { rows } = await this.pool.query<Claim>({
      name: 'relay_claim',
      text: `update relay_checkpoint c set epoch = c.epoch + 1
             from lease l
             where c.lane = any ($1) and l.name = $2 || c.lane and l.owner = $3
               and l.until > colloquy_now() + $4 * interval '1 millisecond'
             returning c.lane, c.position, c.epoch`,
      values: [lanes, LANE_LEASE, this.owner, MARGIN_MS],
    });
    return rows;
  }

  /** Whether all these claims still stand and their leases are still this node's. @param claims lane → epoch */
  async stand(claims: ReadonlyMap<number, number>): Promise<boolean> {
    const { rowCount } = await this.pool.query({
      name: 'relay_confirm',
      text: `select from unnest($1::smallint[], $2::bigint[]) as claim (lane, epoch)
               join relay_checkpoint c on c.lane = claim.lane and c.epoch = claim.epoch
               join lease l on l.name = $3 || claim.lane and l.owner = $4
                            and l.until > colloquy_now() + $5 * interval '1 millisecond'`,
      values: [[...claims.keys()], [...claims.values()], LANE_LEASE, this.owner, MARGIN_MS],
    });
    return rowCount === claims.size;
  }

  /** Moves the checkpoints of lanes. @returns false when another node has claimed one of them meanwhile */
  async move(moves: ReadonlyMap<number, Move>): Promise<boolean> {
    const lanes = [...moves.keys()].sort((a, b) => a - b);
    const column = (of: keyof Move) => lanes.map((lane) => moves.get(lane)?.[of]);
    const { rowCount } = await this.pool.query({
      name: 'relay_move',
      text: `update relay_checkpoint c set position = m.new
             from unnest($1::smallint[], $2::bigint[], $3::bigint[], $4::bigint[]) as m (lane, epoch, old, new)
             where c.lane = m.lane and c.epoch = m.epoch and c.position = m.old`,
      values: [lanes, column('epoch'), column('from'), column('to')],
    });
    return rowCount === lanes.length;
  }

  /**
   * The sizes of the next events of some lanes, summed over the lanes: entry n is that of the (n + 1)th event of each.
   * @param after lane → the position behind which to begin
   */
  async sizes(after: ReadonlyMap<number, number>, limit: number): Promise<number[]> {
    const { rows } = await this.pool.query<{ nth: number; bytes: string }>({
      name: 'relay_sizes',
      text: `select e.position - reader.position as nth,
                    -- What is small is no other size as text; only what may be compressed is looked at as such.
                    sum(coalesce(case when pg_column_size(e.data) < 1000 then pg_column_size(e.data)
                                      else octet_length(e.data::text) end, octet_length(e.sealed), 0)) as bytes
             from unnest($1::smallint[], $2::bigint[]) as reader (lane, "position")
             cross join lateral (
               select * from event e where e.lane = reader.lane and e.position > reader.position
               order by e.position limit $3
             ) e
             group by 1 order by 1`,
      values: [[...after.keys()], [...after.values()], limit],
    });
    // A lane's numbers have no gaps, so the rows are 1, 2, 3 … up to the longest lane.
    return rows.map(({ bytes }) => Number(bytes));
  }

  /** The topic that was published to so far; undefined before the first time. */
  async recordedTopic(): Promise<RecordedTopic | undefined> {
    const { rows } = await this.pool.query<RecordedTopic>('select topic, partitions from relay_topic');
    return rows[0];
  }

  /** @returns the record, which another node may have made first */
  async recordTopic(topic: RecordedTopic): Promise<RecordedTopic> {
    await this.pool.query(
      'insert into relay_topic (topic, partitions) values ($1, $2) on conflict do nothing',
      [topic.topic, topic.partitions],
    );
    return (await this.recordedTopic()) ?? topic;
  }

  /**
   * Publishing begins again with the first event, to a topic that is still to be recorded. One statement, so that the
   * record and the positions cannot contradict each other; the new epochs stop every node that is publishing.
   */
  async beginAnew(): Promise<void> {
    await this.pool.query(
      `with forgotten as (delete from relay_topic)
       update relay_checkpoint set position = 0, epoch = epoch + 1`,
    );
  }
}
