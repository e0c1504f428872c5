-- Appends to one stream: the short way of append_batch for a lone append without key, guard or counter.
-- p_more: events after the first one, as a JSON array of {id, type, schemaVersion, data}.
-- p_lease: a lease of p_lease_owner that begins with the append, for p_lease_ms milliseconds.
--
-- Returns {ok, version, position, time, created_at, last_activity_at} of the stream's new end, or {conflict, version}.
-- An array, because a function that is scanned as a table takes a tenth longer; and few statements, because each
-- takes as long as the row that it writes. For the same reason a writer says where it saw the lane end: a look at the
-- log locks all of its partitions. If the lane has grown since, the insert finds the place taken, and only then looks.
--
-- p_lane_end: null when the writer does not know. It may be too low, but never too high.
create function append_event(
  p_lane smallint,
  p_lane_end bigint,
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
  p_more jsonb,
  p_lease text,
  p_lease_owner uuid,
  p_lease_ms bigint
)
returns text[]
language plpgsql
as $$
declare
  v_more integer := coalesce(jsonb_array_length(p_more), 0);
  v_now timestamptz;
  -- Of the first event.
  v_position bigint;
  v_time timestamptz;
  v_created_at timestamptz;
  v_last_activity_at timestamptz;
begin
  perform pg_advisory_xact_lock(7301, p_lane);
  v_now := colloquy_now();
  if p_lane_end is null then
    v_position := coalesce((select e.position from event e where e.lane = p_lane order by e.position desc limit 1), 0) + 1;
  else
    v_position := p_lane_end + 1;
  end if;

  -- A new statement has a new snapshot: it sees all that was committed under this lane's lock.
  if p_expected = 0 then
    insert into stream (tenant, stream_id, lane, version, incarnation, position, time, created_at, last_activity_at,
                        state, state_version, sealed, key_id)
    values (p_tenant, p_stream_id, p_lane, 1 + v_more, p_incarnation, v_position + v_more,
            v_now, case when p_incarnation > 0 then v_now end, case when p_activity then v_now end,
            p_state, p_state_version, p_state_sealed, p_state_key_id)
    on conflict do nothing
    returning time, created_at, last_activity_at
    into v_time, v_created_at, v_last_activity_at;
  else
    -- Not earlier than the stream's last event, so that time never goes back within a stream.
    update stream s
    set version = p_expected + 1 + v_more, incarnation = p_incarnation,
        position = v_position + v_more,
        time = greatest(s.time, v_now),
        created_at = case when p_incarnation > s.incarnation then greatest(s.time, v_now) else s.created_at end,
        last_activity_at = case when p_activity then greatest(s.time, v_now) else s.last_activity_at end,
        state = p_state, state_version = p_state_version, sealed = p_state_sealed, key_id = p_state_key_id
    where s.tenant = p_tenant and s.stream_id = p_stream_id and s.version = p_expected
    returning s.time, s.created_at, s.last_activity_at
    into v_time, v_created_at, v_last_activity_at;
  end if;
  if not found then
    return array['conflict',
      coalesce((select s.version from stream s where s.tenant = p_tenant and s.stream_id = p_stream_id), 0)::text];
  end if;

  loop
    insert into event (lane, position, tenant, stream_id, version, incarnation, id, type, schema_version, time,
                       actor, correlation_id, causation_id, data, sealed, key_id)
    values (p_lane, v_position, p_tenant, p_stream_id, p_expected + 1, p_incarnation, p_id, p_type, p_schema_version,
            v_time, p_actor, p_correlation_id, p_causation_id, p_data, p_sealed, p_key_id)
    on conflict do nothing;
    exit when found;
    v_position := (select e.position from event e where e.lane = p_lane order by e.position desc limit 1) + 1;
    update stream s set position = v_position + v_more where s.tenant = p_tenant and s.stream_id = p_stream_id;
  end loop;
  if v_more > 0 then
    insert into event (lane, position, tenant, stream_id, version, incarnation, id, type, schema_version, time,
                       actor, correlation_id, causation_id, data)
    select p_lane, v_position + m.n, p_tenant, p_stream_id, p_expected + 1 + m.n, p_incarnation,
           (m.event ->> 'id')::uuid, m.event ->> 'type', (m.event ->> 'schemaVersion')::smallint,
           v_time, p_actor, p_correlation_id, p_causation_id, nullif(m.event -> 'data', 'null')
    from jsonb_array_elements(p_more) with ordinality as m (event, n);
  end if;
  if p_lease is not null then
    insert into lease (name, owner, epoch, until)
    values (p_lease, p_lease_owner, nextval('lease_epoch'), v_now + p_lease_ms * interval '1 millisecond')
    on conflict do nothing;
  end if;
  return array['ok', (p_expected + 1 + v_more)::text, (v_position + v_more)::text, v_time::text, v_created_at::text, v_last_activity_at::text];
end $$;
