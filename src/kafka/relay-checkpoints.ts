import { type Pool } from 'pg';
import { available } from '../database/connection.js';
import { leaseHeldBy } from '../event-store/leases.js';

/** A lane as this node has claimed it. */
export interface Claim {
  readonly lane: number;
  /** Grows with every claim of the lane, on any node: a checkpoint is moved only under the latest one. */
  readonly epoch: number;
  /** The last position that the brokers have acknowledged. */
  readonly position: number;
  /** The generation of the log of which the topic was told for this lane. */
  readonly generation: number;
}

/** How far one batch takes the checkpoint of a lane. */
export interface Move {
  /** Of the claim under which the events were read. */
  readonly epoch: number;
  readonly from: number;
  readonly to: number;
  /** Of which the topic is told by this batch, if it was not before. */
  readonly generation: number;
}

export interface RecordedTopic {
  readonly topic: string;
  readonly partitions: number;
  /** The database that the topic was last compared with, as `thisDatabase` names it. */
  readonly database: string | null;
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
             where c.lane = any ($1) and ${leaseHeldBy({ name: '$2 || c.lane', owner: '$3', forMs: '$4' })}
             returning c.lane, c.position, c.epoch, c.generation`,
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
             where ${leaseHeldBy({ name: '$3 || claim.lane', owner: '$4', forMs: '$5' })}`,
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
      text: `update relay_checkpoint c set position = m.new, generation = m.generation
             from unnest($1::smallint[], $2::bigint[], $3::bigint[], $4::bigint[], $5::integer[])
                  as m (lane, epoch, old, new, generation)
             where c.lane = m.lane and c.epoch = m.epoch and c.position = m.old`,
      values: [lanes, column('epoch'), column('from'), column('to'), column('generation')],
    });
    return rowCount === lanes.length;
  }

  /** The topic that was published to so far; undefined before the first time. */
  async recordedTopic(): Promise<RecordedTopic | undefined> {
    const { rows } = await this.pool.query<RecordedTopic>(
      'select topic, partitions, database from relay_topic',
    );
    return rows[0];
  }

  /** @returns the record, which another node may have made first */
  async recordTopic(topic: Omit<RecordedTopic, 'database'>): Promise<RecordedTopic> {
    await this.pool.query(
      'insert into relay_topic (topic, partitions) values ($1, $2) on conflict do nothing',
      [topic.topic, topic.partitions],
    );
    return (await this.recordedTopic()) ?? { ...topic, database: null };
  }

  async recordDatabase(database: string): Promise<void> {
    await this.pool.query('update relay_topic set database = $1', [database]);
  }

  /**
   * Names this database. The name changes when the database becomes another one with the same tables: a promoted
   * replica and a restore to a moment open a timeline, and what is loaded from a dump has tables of its own.
   */
  async thisDatabase(): Promise<string> {
    const { rows } = await available(() =>
      this.pool.query<{ name: string }>(
        `select concat_ws('/', (select system_identifier from pg_control_system()),
           left(pg_walfile_name(pg_current_wal_lsn()), 8), 'relay_topic'::regclass::oid) as name`,
      ),
    );
    return rows[0]?.name ?? '';
  }

  /**
   * Publishing begins again with the first event, to a topic that is still to be recorded. One statement, so that the
   * record and the positions cannot contradict each other; the new epochs stop every node that is publishing.
   *
   * @param generation the present one of the log: a topic that begins with it has nothing of earlier ones to be told of
   */
  async beginAnew(generation: number): Promise<void> {
    await this.pool.query(
      `with forgotten as (delete from relay_topic)
       update relay_checkpoint set position = 0, epoch = epoch + 1, generation = $1`,
      [generation],
    );
  }
}
