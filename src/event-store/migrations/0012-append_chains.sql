-- Appends to many streams and lanes in one commit. Each append is decided alone; a refused one changes nothing.
--
-- p_lanes: the lanes concerned, ascending.
-- a_*: one element per append. a_lane is the lane's number in p_lanes, from 1.
-- a_chained: whether an append goes on where the one before it in the batch ends, and is refused with it. Apart from such
-- chains a stream stands in a batch once. A chained append has neither guard nor counters. What it says of its stream
-- (a_created_at, a_activity) is said of the chain up to it.
-- e_*: one element per event; e_append is the number of its append, e_ordinal its number in there, both from 1.
-- a_created_at, a_last_activity_at: what the caller knows of the stream as of a_expected, which the check of the version
-- proves right; null where that begins with this append. a_activity: whether the append is a use of the stream itself.
-- a_state_version: null when the stream's row stays as it is, at an earlier version.
-- a_lease: a lease that begins with the append.
-- c_*: one element per change of a counter, in the order of the appends.
-- The jsonb parameters are JSON arrays in step with their group: cheaper to send than arrays of escaped text.
-- A column that has nothing but nulls may be null itself; unnest fills it up.
--
-- Returns one row per append, in order. Status:
--   ok         appended; version, position and time are those of its last event
--   duplicate  the key was used before by the same request: r_reference is the first result, r_version its version
--   reused     the key was used before by another request
--   conflict   the stream is at r_version, not at the expected version
--   guard      the guard does not hold
--   counter    a counter would pass its limit
--   retry      somebody used the same key at the same moment: ask again
-- Takes the place of append_batch, which nodes of the version before call until all of them are replaced.
create function append_chains(
  p_lanes smallint[],
  a_lane integer[],
  a_tenant text[],
  a_stream_id text[],
  a_expected integer[],
  a_incarnation integer[],
  a_created_at timestamptz[],
  a_last_activity_at timestamptz[],
  a_activity boolean[],
  a_actor text[],
  a_correlation_id text[],
  a_causation_id text[],
  a_events integer[],
  a_state jsonb,
  a_state_version smallint[],
  a_state_sealed bytea[],
  a_state_key_id uuid[],
  a_idle_for bigint[],
  a_before timestamptz[],
  a_lease_over text[],
  a_scope text[],
  a_key text[],
  a_fingerprint text[],
  a_reference jsonb,
  a_lease text[],
  a_lease_owner uuid[],
  a_lease_ms bigint[],
  e_append integer[],
  e_ordinal integer[],
  e_id uuid[],
  e_type text[],
  e_schema_version smallint[],
  e_data jsonb,
  e_sealed bytea[],
  e_key_id uuid[],
  c_append integer[],
  c_key text[],
  c_delta integer[],
  c_max bigint[],
  a_chained boolean[]
)
returns table (
  status text,
  r_version integer,
  r_position bigint,
  r_time timestamptz,
  r_reference jsonb
)
language plpgsql
as $$
declare
  -- Keyed results are kept for a day.
  c_kept constant interval := interval '24 hours';
  v_now timestamptz;
  v_status text[];
  v_version integer[];
  v_position bigint[];
  v_time timestamptz[];
  v_reference jsonb[];
  v_lane_end bigint[];
  v_lost integer[];
  v_link integer;
begin
  -- Locks are taken in one order everywhere: lanes, keys, counters, each ascending. No two batches can deadlock.
  perform pg_advisory_xact_lock(7301, l) from unnest(p_lanes) as l;
  v_now := colloquy_now();

  -- A new statement has a new snapshot: it sees all that was committed under these lanes' locks.
  select array_agg(
           case
             when c.key is not null and c.fingerprint <> a.fingerprint then 'reused'
             when c.key is not null then 'duplicate'
             when a.chained then 'ok'
             when coalesce(s.version, 0) <> a.expected then 'conflict'
             when a.idle_for is not null
               and greatest(s.time, v_now) - coalesce(a.last_activity_at, s.time) < a.idle_for * interval '1 millisecond' then 'guard'
             when a.before is not null and greatest(s.time, v_now) >= a.before then 'guard'
             when a.lease_over is not null
               and exists (select from lease l where l.name = a.lease_over and l.until > v_now) then 'guard'
             else 'ok'
           end order by a.n),
         array_agg(coalesce(c.version, case when a.chained then a.expected else s.version end, 0) order by a.n),
         array_agg(coalesce(s.position, 0) order by a.n),
         -- Not earlier than the stream's last event, so that time never goes back within a stream.
         array_agg(greatest(s.time, v_now) order by a.n),
         array_agg(c.reference order by a.n)
  into v_status, v_version, v_position, v_time, v_reference
  from unnest(a_lane, a_tenant, a_stream_id, a_expected, a_last_activity_at, a_idle_for, a_before, a_lease_over,
              a_scope, a_key, a_fingerprint, a_chained)
       with ordinality as a (lane, tenant, stream_id, expected, last_activity_at, idle_for, before, lease_over,
                             scope, key, fingerprint, chained, n)
  -- One by one through the index: a plan made while the tables were small would read all of them for every batch.
  left join lateral (
    select e.version, e.position, e.time from event e
    where e.lane = p_lanes[a.lane] and e.tenant = a.tenant and e.stream_id = a.stream_id and a.chained is not true
    order by e.version desc limit 1
  ) s on true
  left join lateral (
    select * from command
    where tenant = a.tenant and scope = a.scope and key = a.key and time > v_now - c_kept limit 1
  ) c on true;

  if cardinality(array_remove(a_key, null)) > 0 then
    with keyed as (
      select *
      from rows from (unnest(a_tenant, a_stream_id, a_scope, a_key, a_fingerprint, v_status, v_version, a_events),
                      jsonb_array_elements(a_reference))
           with ordinality as a (tenant, stream_id, scope, key, fingerprint, status, version, events, reference, n)
      where a.status = 'ok' and a.key is not null
    ), kept as (
      insert into command as known (tenant, scope, key, fingerprint, reference, stream_id, version, time)
      select k.tenant, k.scope, k.key, k.fingerprint, k.reference, k.stream_id, k.version + k.events, v_now
      from keyed k
      order by k.tenant, k.scope, k.key
      on conflict on constraint command_pkey do update
        set fingerprint = excluded.fingerprint, reference = excluded.reference,
            stream_id = excluded.stream_id, version = excluded.version, time = excluded.time
        where known.time <= v_now - c_kept
      returning known.tenant, known.scope, known.key
    )
    -- A key that somebody else used meanwhile on another lane is not returned by the insert.
    select array_agg(k.n) into v_lost
    from keyed k left join kept on kept.tenant = k.tenant and kept.scope = k.scope and kept.key = k.key
    where kept.key is null;
    for i in 1 .. coalesce(cardinality(v_lost), 0) loop
      v_status[v_lost[i]] := 'retry';
    end loop;
  end if;

  if cardinality(c_append) > 0 then
    insert into counter (key, value) select distinct k, 0 from unnest(c_key) as k order by k on conflict do nothing;
    perform from counter where key = any (c_key) order by key for update;
    for i in 1 .. cardinality(c_append) loop
      if v_status[c_append[i]] = 'ok' then
        update counter set value = value + c_delta[i]
        where key = c_key[i] and (c_delta[i] <= 0 or value + c_delta[i] <= c_max[i]);
        if not found then
          v_status[c_append[i]] := 'counter';
          -- Those that the same append has changed already: its changes stand together.
          for j in 1 .. i - 1 loop
            if c_append[j] = c_append[i] then
              update counter set value = value - c_delta[j] where key = c_key[j];
            end if;
          end loop;
          delete from command c
          where c.tenant = a_tenant[c_append[i]] and c.scope = a_scope[c_append[i]] and c.key = a_key[c_append[i]];
        end if;
      end if;
    end loop;
  end if;

  for i in 2 .. coalesce(cardinality(a_chained), 0) loop
    if a_chained[i] then
      v_time[i] := v_time[i - 1];
      if v_status[i] = 'ok' and v_status[i - 1] <> 'ok' then
        v_status[i] := 'conflict';
        delete from command c where c.tenant = a_tenant[i] and c.scope = a_scope[i] and c.key = a_key[i];
      elsif v_status[i] = 'ok' and a_state_version[i] is not null then
        -- Of the states of a chain only the last one is stored.
        v_link := i;
        while a_chained[v_link] loop
          v_link := v_link - 1;
          a_state_version[v_link] := null;
        end loop;
      end if;
    end if;
  end loop;

  if array_position(v_status, 'ok') is not null then
    select array_agg(coalesce((select max(e.position) from event e where e.lane = l.lane), 0) order by l.n)
    into v_lane_end from unnest(p_lanes) with ordinality as l (lane, n);

    -- Where each append ends, in its stream and in its lane.
    select array_agg(case when a.ok then a.version + a.events else a.version end order by a.n),
           array_agg(case when a.ok and a.events > 0 then v_lane_end[a.lane] + a.reach else a.position end order by a.n)
    into v_version, v_position
    from (
      select b.lane, b.status = 'ok' as ok, b.version, b.position, b.events, b.n,
             sum(b.events) filter (where b.status = 'ok') over (partition by b.lane order by b.n) as reach
      from unnest(a_lane, v_status, v_version, v_position, a_events)
           with ordinality as b (lane, status, version, position, events, n)
    ) a;

    insert into event (lane, position, tenant, stream_id, version, incarnation, id, type, schema_version, time,
                       actor, correlation_id, causation_id, data, sealed, key_id)
    select p_lanes[a_lane[e.append]], v_position[e.append] - a_events[e.append] + e.ordinal, a_tenant[e.append],
           a_stream_id[e.append], v_version[e.append] - a_events[e.append] + e.ordinal, a_incarnation[e.append],
           e.id, e.type, e.schema_version, v_time[e.append], a_actor[e.append], a_correlation_id[e.append],
           a_causation_id[e.append], nullif(e.data, 'null'), e.sealed, e.key_id
    from rows from (unnest(e_append, e_ordinal, e_id, e_type, e_schema_version, e_sealed, e_key_id),
                    jsonb_array_elements(e_data))
         as e (append, ordinal, id, type, schema_version, sealed, key_id, data)
    where v_status[e.append] = 'ok';

    insert into stream_state (tenant, stream_id, lane, version, incarnation, position, time, created_at,
                              last_activity_at, state, state_version, sealed, key_id)
    select a.tenant, a.stream_id, p_lanes[a.lane], a.version, a.incarnation, a.position, a.time,
           coalesce(a.created_at, a.time),
           case when a.activity then a.time else coalesce(a.last_activity_at, a.time) end,
           nullif(a.state, 'null'), a.state_version, a.sealed, a.key_id
    from rows from (unnest(a_tenant, a_stream_id, a_lane, v_status, v_version, a_incarnation, v_position, v_time,
                           a_created_at, a_last_activity_at, a_activity, a_events, a_state_version, a_state_sealed,
                           a_state_key_id),
                    jsonb_array_elements(a_state))
         as a (tenant, stream_id, lane, status, version, incarnation, position, time, created_at,
               last_activity_at, activity, events, state_version, sealed, key_id, state)
    where a.status = 'ok' and a.events > 0 and a.state_version is not null
    on conflict on constraint stream_state_pkey do update
      set version = excluded.version, incarnation = excluded.incarnation, position = excluded.position,
          time = excluded.time, created_at = excluded.created_at, last_activity_at = excluded.last_activity_at,
          state = excluded.state, state_version = excluded.state_version,
          sealed = excluded.sealed, key_id = excluded.key_id;

    if a_lease is not null then
      insert into lease (name, owner, epoch, until)
      select a.lease, a.owner, nextval('lease_epoch'), v_now + a.ms * interval '1 millisecond'
      from unnest(a_lease, a_lease_owner, a_lease_ms, v_status) as a (lease, owner, ms, status)
      where a.status = 'ok' and a.lease is not null
      order by a.lease
      on conflict do nothing;
    end if;
  end if;

  return query
    select * from unnest(v_status, v_version, v_position, v_time, v_reference);
end $$;
