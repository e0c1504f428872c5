-- A log that was set back has given out epochs of leases which its sequence knows nothing of. Whoever held such a lease may
-- still write with its epoch, and what it wrote under would refuse all later owners, whose epochs began again below it. So
-- a new generation of the log begins with epochs that none before it can have had.
create function skip_lease_epochs() returns void
language sql security definer
as $$ select setval('lease_epoch', nextval('lease_epoch') + 1000000) $$;

-- As before, and the epochs of leases go on above all that were given out.
create or replace function log_generations(p_generation integer, p_positions bigint[])
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
      perform skip_lease_epochs();
      insert into log_generation values (v_last.generation + 1, colloquy_now(), log_server(), v_ends);
    end if;
  end loop;
  return query select * from log_generation order by generation;
end $$;
