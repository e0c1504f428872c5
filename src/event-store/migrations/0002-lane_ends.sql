-- The last position of each lane, 0 where it is empty.
create or replace function lane_ends() returns table (lane smallint, "position" bigint)
language sql stable as $$
  select l.lane::smallint, coalesce((select max(e.position) from event e where e.lane = l.lane), 0)
  from generate_series(0, (select lanes - 1 from log_settings)) as l (lane)
$$;
