-- Appends to one stream: the short way of append_batch for a lone append without key, guard or counter.
-- p_more: events after the first one, as a JSON array of {id, type, schemaVersion, data}.
-- p_lease: a lease of p_lease_owner that begins with the append, for p_lease_ms milliseconds.
-- p_state_version: null when the stream's row stays as it is, at an earlier version.
-- p_created_at, p_last_activity_at: what the row says then; null for the time of this append.
--
-- Returns {ok, version, position, time} of the stream's new end, or {conflict, version}.
-- An array, because a function that is scanned as a table takes a tenth longer; and few statements, because each costs
-- more than the row that it reads or writes. For the same reason a writer says where it saw the lane end. If the lane
-- has grown since, the insert finds the place taken, and only then looks.
--
-- p_lane_end: null when the writer does not know. It may be too low, but never too high.
create or replace function append_event(
  p_lane smallint,
  p_lane_end bigint,
  p_tenant text,
  p_stream_id text,
  p_expected integer,
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
  p_lease_ms bigint,
  p_state_version smallint,
  p_state jsonb,
  p_state_sealed bytea,
  p_state_key_id uuid,
  p_created_at timestamptz,
  p_last_activity_at timestamptz
)
returns text[]
language plpgsql
as $$
declare
  v_more integer := coalesce(jsonb_array_length(p_more), 0);
  v_now timestamptz;
  v_version integer;
  -- Of the first event.
  v_position bigint := p_lane_end + 1;
  v_time timestamptz;
begin
  perform pg_advisory_xact_lock(7301, p_lane);
  v_now := colloquy_now();

  -- A new statement has a new snapshot: it sees all that was committed under this lane's lock.
  select e.version, e.time into v_version, v_time
  from event e
  where e.lane = p_lane and e.tenant = p_tenant and e.stream_id = p_stream_id
  order by e.version desc limit 1;
  if coalesce(v_version, 0) <> p_expected then
    return array['conflict', coalesce(v_version, 0)::text];
  end if;
  -- Not earlier than the stream's last event, so that time never goes back within a stream.
  v_time := greatest(v_time, v_now);

  loop
    if v_position is null then
      v_position := coalesce((select e.position from event e where e.lane = p_lane order by e.position desc limit 1), 0) + 1;
    end if;
    insert into event (lane, position, tenant, stream_id, version, incarnation, id, type, schema_version, time,
                       actor, correlation_id, causation_id, data, sealed, key_id)
    values (p_lane, v_position, p_tenant, p_stream_id, p_expected + 1, p_incarnation, p_id, p_type, p_schema_version,
            v_time, p_actor, p_correlation_id, p_causation_id, p_data, p_sealed, p_key_id)
    on conflict do nothing;
    exit when found;
    v_position := null;
  end loop;
  if v_more > 0 then
    insert into event (lane, position, tenant, stream_id, version, incarnation, id, type, schema_version, time,
                       actor, correlation_id, causation_id, data)
    select p_lane, v_position + m.n, p_tenant, p_stream_id, p_expected + 1 + m.n, p_incarnation,
           (m.event ->> 'id')::uuid, m.event ->> 'type', (m.event ->> 'schemaVersion')::smallint,
           v_time, p_actor, p_correlation_id, p_causation_id, nullif(m.event -> 'data', 'null')
    from jsonb_array_elements(p_more) with ordinality as m (event, n);
  end if;
  if p_state_version is not null then
    insert into stream_state (tenant, stream_id, lane, version, incarnation, position, time, created_at,
                              last_activity_at, state, state_version, sealed, key_id)
    values (p_tenant, p_stream_id, p_lane, p_expected + 1 + v_more, p_incarnation, v_position + v_more, v_time,
            coalesce(p_created_at, v_time), coalesce(p_last_activity_at, v_time), p_state, p_state_version,
            p_state_sealed, p_state_key_id)
    on conflict on constraint stream_state_pkey do update
      set version = excluded.version, incarnation = excluded.incarnation, position = excluded.position,
          time = excluded.time, created_at = excluded.created_at, last_activity_at = excluded.last_activity_at,
          state = excluded.state, state_version = excluded.state_version,
          sealed = excluded.sealed, key_id = excluded.key_id;
  end if;
  if p_lease is not null then
    insert into lease (name, owner, epoch, until)
    values (p_lease, p_lease_owner, nextval('lease_epoch'), v_now + p_lease_ms * interval '1 millisecond')
    on conflict do nothing;
  end if;
  return array['ok', (p_expected + 1 + v_more)::text, (v_position + v_more)::text, v_time::text];
end $$;
