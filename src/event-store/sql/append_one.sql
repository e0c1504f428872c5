-- Appends one event to one stream: the short way of append_batch for a lone append without key, guard or counter.
-- Status: 'ok' or 'conflict'; position and time are those of the event.
create or replace function append_one(
  p_lane smallint,
  p_tenant text,
  p_stream_id text,
  p_expected integer,
  p_activity boolean,
  p_state jsonb,
  p_state_version smallint,
  p_state_sealed bytea,
  p_state_key_id uuid,
  p_id uuid,
  p_type text,
  p_schema_version smallint,
  p_incarnation integer,
  p_actor text,
  p_correlation_id text,
  p_causation_id text,
  p_data jsonb,
  p_sealed bytea,
  p_key_id uuid,
  out status text,
  out r_version integer,
  out r_position bigint,
  out r_time timestamptz,
  out r_created_at timestamptz,
  out r_last_activity_at timestamptz
)
language plpgsql
set plan_cache_mode = force_generic_plan
as $$
declare
  v_stream stream;
begin
  perform pg_advisory_xact_lock(7301, p_lane);
  -- A new statement has a new snapshot: it sees all that was committed under this lane's lock.
  select * into v_stream from stream s where s.tenant = p_tenant and s.stream_id = p_stream_id;
  r_version := coalesce(v_stream.version, 0);
  if r_version <> p_expected then
    status := 'conflict';
    return;
  end if;

  r_version := r_version + 1;
  -- Not earlier than the stream's last event, so that time never goes back within a stream.
  r_time := greatest(v_stream.time, colloquy_now());
  r_created_at := case when p_incarnation > coalesce(v_stream.incarnation, 0) then r_time else v_stream.created_at end;
  r_last_activity_at := case when p_activity then r_time else v_stream.last_activity_at end;
  select coalesce(max(e.position), 0) + 1 into r_position from event e where e.lane = p_lane;

  insert into event (lane, position, tenant, stream_id, version, incarnation, id, type, schema_version, time,
                     actor, correlation_id, causation_id, data, sealed, key_id)
  values (p_lane, r_position, p_tenant, p_stream_id, r_version, p_incarnation, p_id, p_type, p_schema_version, r_time,
          p_actor, p_correlation_id, p_causation_id, p_data, p_sealed, p_key_id);

  if p_expected = 0 then
    insert into stream values (p_tenant, p_stream_id, p_lane, r_version, p_incarnation, r_position, r_time,
      r_created_at, r_last_activity_at, p_state, p_state_version, p_state_sealed, p_state_key_id);
  else
    update stream s
    set version = r_version, incarnation = p_incarnation, position = r_position, time = r_time,
        created_at = r_created_at, last_activity_at = r_last_activity_at,
        state = p_state, state_version = p_state_version, sealed = p_state_sealed, key_id = p_state_key_id
    where s.tenant = p_tenant and s.stream_id = p_stream_id;
  end if;
  status := 'ok';
end $$;
