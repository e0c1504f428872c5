-- Takes or renews leases for an owner, for p_ms milliseconds. A lease that another owner holds is left alone.
-- Returns those that are held afterwards. Names must come sorted: row locks are then taken in one order.
create or replace function lease_take(p_names text[], p_owner uuid, p_ms bigint)
returns table (name text, epoch bigint)
language sql as $$
  insert into lease as l (name, owner, epoch, until)
  select n.name, p_owner, nextval('lease_epoch'), colloquy_now() + p_ms * interval '1 millisecond'
  from unnest(p_names) as n (name)
  on conflict on constraint lease_pkey do update
    set owner = excluded.owner,
        epoch = case when l.owner = excluded.owner and l.until > colloquy_now() then l.epoch
                     -- Drawn anew, now that the row is locked: later owners have higher epochs.
                     else nextval('lease_epoch') end,
        until = excluded.until
    where l.owner = excluded.owner or l.until <= colloquy_now()
  returning l.name, l.epoch
$$;
