-- Tenants that are not at home in this log. It takes their events from the log where they are at home, as copies, and
-- from nobody else, so that no process that does not know it yet can make the tenant live in two places.
create table tenant_absence (
  number integer generated always as identity primary key,
  tenant text collate "C" not null,
  since timestamptz not null default colloquy_now(),
  -- By lane, from lane 0 on: where the lanes ended when the absence began, and when it ended. What there is of the tenant
  -- in between are copies, which the log that they come from has published.
  closed bigint[] not null,
  opened bigint[],
  -- From then on the tenant is at home in another log, and can only come from there.
  departed boolean not null default false
);
create unique index tenant_absent on tenant_absence (tenant) where opened is null;

-- How far the events of a tenant were copied from another log, which is known by its key.
create table tenant_copy (
  tenant text collate "C" not null,
  origin bytea not null,
  -- The generation of the other log.
  generation integer not null,
  lane smallint not null,
  position bigint not null,
  primary key (tenant, origin, lane)
);

-- Where events of a tenant stand that were copied, for whoever knows their positions in the log that they come from.
create table moved_position (
  tenant text collate "C" not null,
  origin bytea not null,
  -- The log that they were copied to: this one, or the one that they were copied from later.
  target bytea not null,
  -- The generation of the log that they come from.
  generation integer not null,
  lane smallint not null,
  -- The first of from_positions.
  first bigint not null,
  from_positions bigint[] not null,
  to_positions bigint[] not null,
  primary key (tenant, origin, target, lane, first)
);

-- Looks at all that was added by a statement. A statement of its own sees what was committed before the lanes were locked:
-- whoever begins an absence holds the locks of all lanes.
create function refuse_absent() returns trigger language plpgsql as $$
declare
  v_tenant text;
begin
  select a.tenant into v_tenant
  from tenant_absence a
  where a.opened is null and a.tenant in (select tenant from added)
    and a.tenant is distinct from nullif(current_setting('colloquy.copied_tenant', true), '')
  limit 1;
  if found then
    raise exception 'the tenant % is not at home in this log', v_tenant using errcode = 'CQ002', detail = v_tenant;
  end if;
  return null;
end $$;

-- A log that no tenant has left, nor come to, has no trigger, and its appends cost what they cost. This is no part of
-- begin_absence: who holds this lock of the table must not wait for lanes, whose holders may wait for the table.
create function guard_absences() returns void
language plpgsql security definer
set lock_timeout = '200ms'
as $$
begin
  if not exists (select from pg_trigger where tgrelid = 'event'::regclass and tgname = 'refuse_absent') then
    create trigger refuse_absent after insert on event referencing new table as added
      for each statement execute function refuse_absent();
    alter table event enable always trigger refuse_absent;
  end if;
end $$;

-- Begins the absence of a tenant, unless it has begun. Returns its number.
create function begin_absence(p_tenant text) returns integer
language plpgsql security definer
set lock_timeout = '1s'
as $$
declare
  v_number integer;
begin
  select number into v_number from tenant_absence where tenant = p_tenant and opened is null;
  if found then
    return v_number;
  end if;
  -- Appends hold the lock of their lane until they are committed: there are none under way after this.
  perform pg_advisory_xact_lock(7301, lane) from (select lane from lane_ends() order by lane) as l;
  insert into tenant_absence (tenant, closed)
  values (p_tenant, array(select position from lane_ends() order by lane))
  on conflict (tenant) where opened is null do nothing;
  select number into v_number from tenant_absence where tenant = p_tenant and opened is null;
  return v_number;
end $$;

-- Makes an absence final, unless it has ended: the tenant can be opened where all of it was copied to. Returns whether it
-- is. As every end of an absence names its number, a process that comes too late ends none that began after.
create function depart(p_number integer) returns boolean
language sql security definer
as $$
  with departing as (
    update tenant_absence set departed = true where number = p_number and opened is null returning 1
  ) select exists (select from departing)
$$;

-- Ends an absence: that of a tenant that arrives from another log, or of one that has not departed after all. Returns
-- whether it has ended by this.
create function end_absence(p_number integer, p_arrives boolean) returns boolean
language sql security definer
as $$
  with ending as (
    update tenant_absence set opened = array(select position from lane_ends() order by lane)
    where number = p_number and opened is null and (p_arrives or not departed) returning 1
  ) select exists (select from ending)
$$;

-- Whether a tenant is absent, and is until the end of this transaction.
create function hold_absence(p_tenant text) returns boolean
language plpgsql security definer
as $$
begin
  perform from tenant_absence where tenant = p_tenant and opened is null for share;
  return found;
end $$;

-- They run as the owner of the tables, so they must not find tables of whoever calls them.
do $$
declare
  v_function text;
begin
  foreach v_function in array array['guard_absences()', 'begin_absence(text)', 'depart(integer)',
                                    'end_absence(integer, boolean)', 'hold_absence(text)'] loop
    execute format('alter function %s set search_path = %I, pg_temp', v_function, current_schema());
  end loop;
end $$;
