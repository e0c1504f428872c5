-- append_chains, with appends that destroy keys: what is sealed with them can be read neither here nor in any copy of the
-- rows from then on. An append and the destruction of its keys are one commit, so there is never one without the other,
-- whoever is killed when. An append that is refused destroys nothing.
--
-- p_destroying: the numbers of the appends that destroy, from 1. Snapshots of their streams are deleted: they are only
-- there to save work, and may be of any version.
-- p_key: ids of keys; p_key_append is the number of the append that destroys them. The caller has read them from the log
-- at the version that its append expects, so that they are all there are, or the append is refused.
create function append_destroying(
  p_destroying integer[],
  p_key uuid[],
  p_key_append integer[],
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
  v_append integer := 0;
begin
  for status, r_version, r_position, r_time, r_reference in
    select c.status, c.r_version, c.r_position, c.r_time, c.r_reference from append_chains(
      p_lanes, a_lane, a_tenant, a_stream_id, a_expected, a_incarnation, a_created_at, a_last_activity_at,
      a_activity, a_actor, a_correlation_id, a_causation_id, a_events, a_state, a_state_version, a_state_sealed,
      a_state_key_id, a_idle_for, a_before, a_lease_over, a_scope, a_key, a_fingerprint, a_reference, a_lease,
      a_lease_owner, a_lease_ms, e_append, e_ordinal, e_id, e_type, e_schema_version, e_data, e_sealed, e_key_id,
      c_append, c_key, c_delta, c_max, a_chained
    ) c
  loop
    v_append := v_append + 1;
    if status = 'ok' and v_append = any (p_destroying) then
      update data_key k set wrapped = null, destroyed_at = r_time
      from unnest(p_key, p_key_append) as d (id, append)
      where k.id = d.id and d.append = v_append and k.wrapped is not null;
      delete from stream_snapshot s
      where s.tenant = a_tenant[v_append] and s.stream_id = a_stream_id[v_append];
    end if;
    return next;
  end loop;
end $$;

-- Which keys were destroyed is asked while a tenant moves, and must not read all of them.
create index data_key_destroyed on data_key (id) where destroyed_at is not null;
