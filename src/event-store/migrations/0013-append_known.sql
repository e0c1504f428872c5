-- Appends to streams whose ends the writer knows, as of the ends of their lanes that it has seen. Nothing is looked up: if
-- the positions behind those ends are free, nobody else has appended to the lanes, so that all else which the writer knows
-- of them holds too. This costs hardly more than the INSERT.
--
-- p_run: start time of the server on which the writer saw the ends.
-- p_lanes: the lanes to lock, ascending: those of e_lane, and others that the same transaction goes on with.
-- p_not_before: the latest time of the events at those ends, so that time never goes back within a stream.
-- e_*: one element per event, those of a lane in the order of their positions, which follow its end without gaps.
-- s_*: one element per state to store, each of another stream. Without s_created_at or s_last_activity_at it is the time
-- of this append.
-- The jsonb parameters are JSON arrays in step with their group. A column that has nothing but nulls may be null itself.
--
-- Returns the time of the events. When an end is not where the writer saw it, the transaction fails with the code CQ001:
-- rows of the lanes that have not grown are in already, and must go.
create function append_known(
  p_run timestamptz,
  p_lanes smallint[],
  p_not_before timestamptz,
  e_lane smallint[],
  e_position bigint[],
  e_tenant text[],
  e_stream_id text[],
  e_version integer[],
  e_incarnation integer[],
  e_id uuid[],
  e_type text[],
  e_schema_version smallint[],
  e_actor text[],
  e_correlation_id text[],
  e_causation_id text[],
  e_data jsonb,
  e_sealed bytea[],
  e_key_id uuid[],
  s_tenant text[],
  s_stream_id text[],
  s_lane smallint[],
  s_version integer[],
  s_incarnation integer[],
  s_position bigint[],
  s_created_at timestamptz[],
  s_last_activity_at timestamptz[],
  s_state jsonb,
  s_state_version smallint[],
  s_sealed bytea[],
  s_key_id uuid[]
)
returns timestamptz
language plpgsql
as $$
declare
  v_time timestamptz;
  v_inserted integer := 0;
begin
  -- In the one order in which all appends take them. The clock is read when they are held.
  perform pg_advisory_xact_lock(7301, l) from unnest(p_lanes) as l;
  v_time := greatest(p_not_before, colloquy_now());

  if pg_postmaster_start_time() = p_run then
    insert into event (lane, position, tenant, stream_id, version, incarnation, id, type, schema_version, time,
                       actor, correlation_id, causation_id, data, sealed, key_id)
    select e.lane, e.position, e.tenant, e.stream_id, e.version, e.incarnation, e.id, e.type, e.schema_version, v_time,
           e.actor, e.correlation_id, e.causation_id, nullif(e.data, 'null'), e.sealed, e.key_id
    from rows from (unnest(e_lane, e_position, e_tenant, e_stream_id, e_version, e_incarnation, e_id, e_type,
                           e_schema_version, e_actor, e_correlation_id, e_causation_id, e_sealed, e_key_id),
                    jsonb_array_elements(e_data))
         as e (lane, position, tenant, stream_id, version, incarnation, id, type, schema_version, actor,
               correlation_id, causation_id, sealed, key_id, data)
    on conflict do nothing;
    get diagnostics v_inserted = row_count;
  end if;
  if v_inserted <> cardinality(e_id) then
    raise exception 'a lane has grown since the writer saw its end; the writer will look where it ends now'
      using errcode = 'CQ001';
  end if;

  if s_stream_id is not null then
    insert into stream_state (tenant, stream_id, lane, version, incarnation, position, time, created_at,
                              last_activity_at, state, state_version, sealed, key_id)
    select s.tenant, s.stream_id, s.lane, s.version, s.incarnation, s.position, v_time,
           coalesce(s.created_at, v_time), coalesce(s.last_activity_at, v_time),
           nullif(s.state, 'null'), s.state_version, s.sealed, s.key_id
    from rows from (unnest(s_tenant, s_stream_id, s_lane, s_version, s_incarnation, s_position, s_created_at,
                           s_last_activity_at, s_state_version, s_sealed, s_key_id),
                    jsonb_array_elements(s_state))
         as s (tenant, stream_id, lane, version, incarnation, position, created_at, last_activity_at,
               state_version, sealed, key_id, state)
    on conflict on constraint stream_state_pkey do update
      set version = excluded.version, incarnation = excluded.incarnation, position = excluded.position,
          time = excluded.time, created_at = excluded.created_at, last_activity_at = excluded.last_activity_at,
          state = excluded.state, state_version = excluded.state_version,
          sealed = excluded.sealed, key_id = excluded.key_id;
  end if;
  return v_time;
end $$;
