-- The last version that a stream had up to an incarnation, a version and a time; 0 when it had none.
-- Incarnation and time never go back within a stream, so a search by halves finds it: a look at each event from the
-- end would read all of a long stream to find what it was long ago.
create or replace function last_version(
  p_lane smallint,
  p_tenant text,
  p_stream_id text,
  p_incarnation integer,
  p_version integer,
  p_time timestamptz
)
returns integer
language plpgsql stable
set plan_cache_mode = force_generic_plan
as $$
declare
  v_low integer := 0;
  v_high integer;
  v_middle integer;
  v_holds boolean;
begin
  select e.version into v_high
  from event e
  where e.lane = p_lane and e.tenant = p_tenant and e.stream_id = p_stream_id
  order by e.version desc limit 1;
  v_high := least(coalesce(v_high, 0), p_version);
  while v_low < v_high loop
    -- Rounded up, so that what holds moves the lower end.
    v_middle := v_low + (v_high - v_low + 1) / 2;
    select e.incarnation <= p_incarnation and (p_time is null or e.time <= p_time) into v_holds
    from event e
    where e.lane = p_lane and e.tenant = p_tenant and e.stream_id = p_stream_id and e.version = v_middle;
    if v_holds then v_low := v_middle; else v_high := v_middle - 1; end if;
  end loop;
  return v_low;
end $$;
