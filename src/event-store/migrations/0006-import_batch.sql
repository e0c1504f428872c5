-- Puts whole streams, with the times that they have, at the ends of their lanes: all in one commit, or nothing.
--
-- The events stand in the temporary table import_event of this connection (log-import.ts makes it), whole streams
-- only, however long one is: a stream that could be seen half would be used, or expire, before its rest is there.
-- An event without a time is stamped here. The table is empty afterwards.
--
-- p_lanes: the lanes concerned, ascending.
-- s_*: one element per stream; s_lane is the lane's number in p_lanes, from 1. s_version is the number of its events.
-- s_time: of its last event that has one. s_stamped: whether events without a time follow it, s_stamped_use: whether
-- one of those counts as use of the stream; s_last_activity_at is then that time.
--
-- Returns one row per stream, in order: 'ok', or 'exists' when there is such a stream, which stays as it is.
create or replace function import_batch(
  p_lanes smallint[],
  s_lane integer[],
  s_tenant text[],
  s_stream_id text[],
  s_version integer[],
  s_incarnation integer[],
  s_time timestamptz[],
  s_created_at timestamptz[],
  s_last_activity_at timestamptz[],
  s_stamped boolean[],
  s_stamped_use boolean[],
  s_state jsonb,
  s_state_version smallint,
  s_state_sealed bytea[],
  s_state_key_id uuid[]
)
returns table (status text)
language plpgsql
set plan_cache_mode = force_generic_plan
as $$
declare
  v_now timestamptz;
  v_status text[];
  v_lane_end bigint[];
  v_position bigint[];
begin
  -- The order of append_batch: lanes first, ascending, so that no two can deadlock.
  perform pg_advisory_xact_lock(7301, l) from unnest(p_lanes) as l;
  v_now := colloquy_now();

  if (select count(*) from import_event) <> (select sum(v) from unnest(s_version) as v) then
    raise exception 'the events to import are not those of the streams';
  end if;

  -- A new statement has a new snapshot: it sees all that was committed under these lanes' locks.
  select array_agg(case when s.found then 'exists' else 'ok' end order by a.n)
  into v_status
  from unnest(s_tenant, s_stream_id) with ordinality as a (tenant, stream_id, n)
  left join lateral (
    select true as found from stream_state where tenant = a.tenant and stream_id = a.stream_id limit 1
  ) s on true;

  select array_agg(coalesce((select max(e.position) from event e where e.lane = l.lane), 0) order by l.n)
  into v_lane_end from unnest(p_lanes) with ordinality as l (lane, n);

  -- Where each stream ends in its lane.
  select array_agg(v_lane_end[a.lane] + a.reach order by a.n)
  into v_position
  from (
    select b.lane, b.n,
           coalesce(sum(b.version) filter (where b.status = 'ok') over (partition by b.lane order by b.n), 0) as reach
    from unnest(s_lane, v_status, s_version) with ordinality as b (lane, status, version, n)
  ) a;

  insert into event (lane, position, tenant, stream_id, version, incarnation, id, type, schema_version, time,
                     actor, correlation_id, causation_id, data, sealed, key_id)
  select p_lanes[s_lane[e.stream]], v_position[e.stream] - s_version[e.stream] + e.version, s_tenant[e.stream],
         s_stream_id[e.stream], e.version, e.incarnation, e.id, e.type, e.schema_version,
         coalesce(e.time, greatest(s_time[e.stream], v_now)), e.actor, e.correlation_id, e.causation_id,
         e.data, e.sealed, e.key_id
  from import_event e
  where v_status[e.stream] = 'ok'
  order by e.stream, e.version;

  insert into stream_state (tenant, stream_id, lane, version, incarnation, position, time, created_at,
                      last_activity_at, state, state_version, sealed, key_id)
  select s.tenant, s.stream_id, p_lanes[s.lane], s.version, s.incarnation, s.position,
         case when s.stamped then greatest(s.time, v_now) else s.time end, s.created_at,
         case when s.stamped_use then greatest(s.time, v_now) else s.last_activity_at end,
         nullif(s.state, 'null'), s_state_version, s.sealed, s.key_id
  from rows from (unnest(s_tenant, s_stream_id, s_lane, v_status, s_version, s_incarnation, v_position, s_time,
                         s_created_at, s_last_activity_at, s_stamped, s_stamped_use, s_state_sealed, s_state_key_id),
                  jsonb_array_elements(s_state))
       as s (tenant, stream_id, lane, status, version, incarnation, position, time,
             created_at, last_activity_at, stamped, stamped_use, sealed, key_id, state)
  where s.status = 'ok';

  truncate import_event;
  return query select * from unnest(v_status);
end $$;
