-- The log and what its appends need. Generic: a stream is (tenant, stream_id), the data of an event is JSON.

-- Database time is the only time. Tests redefine this function in their own database instead of sleeping.
-- Milliseconds, because that is what the interfaces show: a time read from an answer can be given back as `at=`.
create function colloquy_now() returns timestamptz language sql volatile
  as $$ select date_trunc('milliseconds', clock_timestamp()) $$;

-- The number of lanes is fixed when the database is made: a stream's lane never changes.
-- The key hides positions from clients: how fast a lane's numbers grow tells what other tenants do.
create table log_settings (
  lanes smallint not null,
  position_key bytea not null
);
insert into log_settings values (16, decode(replace(gen_random_uuid()::text, '-', ''), 'hex'));

create table event (
  lane smallint not null,
  position bigint not null,
  tenant text collate "C" not null,
  stream_id text collate "C" not null,
  version integer not null,
  incarnation integer not null,
  id uuid not null,
  type text collate "C" not null,
  schema_version smallint not null,
  time timestamptz not null,
  actor text not null,
  correlation_id text not null,
  causation_id text,
  data jsonb,
  -- Reserved: sealed payloads (erasure by key destruction) and a hash chain.
  sealed bytea,
  key_id uuid,
  hash bytea,
  primary key (lane, position)
) partition by list (lane);

-- The end of a stream is its last entry here. Nothing is ever deleted or updated, so there are no dead entries to walk
-- past, however long somebody holds a snapshot.
-- Not unique: the lane's lock guards versions, so that a lane can be sub-partitioned by position for archiving.
create index event_stream on event (lane, tenant, stream_id, version);

-- Events are facts: the database itself refuses to change them. Statement triggers of a partitioned table do not
-- cover its partitions, so each has its own; ALWAYS, so that session_replication_role does not switch them off.
create function refuse_change() returns trigger language plpgsql as $$
begin
  raise exception 'events are append-only: % on % is refused', tg_op, tg_table_name
    using errcode = 'insufficient_privilege';
end $$;

do $$
declare
  v_table text;
begin
  for i in 0 .. (select lanes - 1 from log_settings) loop
    execute format('create table %I partition of event for values in (%s)', 'event_lane_' || i, i);
  end loop;
  for v_table in select relid::regclass::text from pg_partition_tree('event') loop
    execute format(
      'create trigger refuse_change before update or delete or truncate on %s for each statement
         execute function refuse_change()', v_table);
    execute format('alter table %s enable always trigger refuse_change', v_table);
    execute format('revoke update, delete, truncate on %s from public', v_table);
  end loop;
end $$;

-- One row per stream: the decision state that it had at `version`, some events ago at most, so that a cold load reads
-- that and the few events since. Made with the stream, then written by one append of several.
-- Nothing that is written again is indexed, and pages keep room: updates stay heap-only.
create table stream_state (
  tenant text collate "C" not null,
  stream_id text collate "C" not null,
  lane smallint not null,
  version integer not null,
  incarnation integer not null,
  position bigint not null,
  time timestamptz not null,
  created_at timestamptz not null,
  last_activity_at timestamptz not null,
  state jsonb,
  state_version smallint not null,
  sealed bytea,
  key_id uuid,
  primary key (tenant, stream_id)
) with (fillfactor = 70);

-- Results of keyed requests, as references, so that a retry gets the first result.
create table command (
  tenant text collate "C" not null,
  scope text collate "C" not null,
  key text collate "C" not null,
  fingerprint text not null,
  reference jsonb not null,
  stream_id text collate "C" not null,
  version integer not null,
  time timestamptz not null,
  primary key (tenant, scope, key)
);
create index command_time on command (time);

-- Sums that appends change together with their events, e.g. how many streams are active.
create table counter (
  key text collate "C" primary key,
  value bigint not null
) with (fillfactor = 50);

-- Who works on what, and until when. The epoch grows with every change of owner; one sequence for all leases, because
-- a lease that is let go leaves no row, and its next owner must not start below an epoch that was seen before.
create sequence lease_epoch;
create table lease (
  name text collate "C" primary key,
  owner uuid not null,
  epoch bigint not null,
  until timestamptz not null
) with (fillfactor = 50);

-- States that streams had at some of their versions, so that a question about the past folds few events. What is
-- missing is folded; what is here was folded from the log, and may be deleted at any time.
create table stream_snapshot (
  tenant text collate "C" not null,
  stream_id text collate "C" not null,
  state_version smallint not null,
  version integer not null,
  state jsonb,
  sealed bytea,
  key_id uuid,
  primary key (tenant, stream_id, state_version, version)
);

-- A tenant's events in the order of their lane. Without it a tenant with few events in a long log would be found by
-- reading the log. The lane is that of the partition, so it is no part of the key.
create index event_tenant on event (tenant, position);

-- The streams that hold settings of a tenant, without a look at every stream.
create index stream_of_tenant on stream_state (tenant) where stream_id = '~tenant';
