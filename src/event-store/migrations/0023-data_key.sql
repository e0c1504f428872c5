-- The keys that payloads are sealed with: the rows of the log name them by id, and they are themselves sealed
-- (wrapped) with a master key that is in no database. Each incarnation of a stream has a key of its own, so that what it
-- holds can be made unreadable, in every copy and backup, by destroying one row.
create table data_key (
  id uuid primary key,
  -- Which master key wraps it: a digest of that key, so that a wrong one is noticed before it is used.
  master text collate "C" not null,
  -- Null once the key was destroyed.
  wrapped bytea,
  created_at timestamptz not null default colloquy_now(),
  destroyed_at timestamptz,
  check ((wrapped is null) = (destroyed_at is not null))
);

-- Under which master keys there are keys is asked at each start, and must not read all of them.
create index data_key_master on data_key (master) where wrapped is not null;

-- A key that is lost makes what it sealed unreadable for ever, so a row only ever gets another wrapping, or is destroyed.
create function guard_data_key() returns trigger language plpgsql as $$
begin
  if tg_op = 'UPDATE' then
    if new.id = old.id and new.created_at = old.created_at and old.wrapped is not null then
      return new;
    end if;
    raise exception 'data key % is destroyed, or would become another one', old.id
      using errcode = 'insufficient_privilege';
  end if;
  raise exception 'data keys are never deleted: % on % is refused', tg_op, tg_table_name
    using errcode = 'insufficient_privilege';
end $$;

create trigger guard_update before update on data_key for each row execute function guard_data_key();
create trigger guard_delete before delete or truncate on data_key for each statement execute function guard_data_key();
alter table data_key enable always trigger guard_update;
alter table data_key enable always trigger guard_delete;
revoke delete, truncate on data_key from public;
