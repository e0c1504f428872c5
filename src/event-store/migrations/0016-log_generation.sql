-- A log that is shorter than it was has other events at positions that were given out before. This happens when a
-- standby takes over that had not got the last ones, or after a restore. So positions are counted by generations of the
-- log: a new one begins whenever the database is another server than it was, or ends before what somebody saw in it.
create table log_generation (
  generation integer primary key,
  since timestamptz not null,
  -- The server on which it began, as log_server() names it.
  server text not null,
  -- By lane, from lane 0 on: the last position that is what it was in the generation before. Empty for the first.
  ends bigint[] not null
);

-- Names the server and its database: a promoted standby and a restore to a moment have another timeline, a load from a
-- dump another table.
create function log_server() returns text language sql stable
  as $$ select concat_ws('/', (select system_identifier from pg_control_system()),
                         left(pg_walfile_name(pg_current_wal_insert_lsn()), 8), 'log_generation'::regclass::oid) $$;

insert into log_generation values (1, colloquy_now(), log_server(), '{}');

-- The generations of the log, after beginning a new one if there has to be one. Whoever is about to append on a new
-- connection calls it before, so that no generation has an event before its ends are written down.
--
-- p_generation, p_positions: the generation that the caller knows, and by lane the last position that it saw in it.
create function log_generations(p_generation integer, p_positions bigint[])
returns setof log_generation
language plpgsql volatile
as $$
declare
  v_last log_generation;
  v_ends bigint[];
begin
  for v_try in 1..2 loop
    select * into v_last from log_generation order by generation desc limit 1;
    v_ends := array(select l.position from lane_ends() l order by l.lane);
    exit when v_last.server = log_server() and not (
      v_last.generation = p_generation
      and exists (select from unnest(p_positions, v_ends) as x (seen, kept) where x.seen > x.kept)
    );
    if v_try = 1 then
      -- Another process may be doing the same, so it is looked at once more.
      perform pg_advisory_xact_lock(7305);
    else
      insert into log_generation values (v_last.generation + 1, colloquy_now(), log_server(), v_ends);
    end if;
  end loop;
  return query select * from log_generation order by generation;
end $$;
