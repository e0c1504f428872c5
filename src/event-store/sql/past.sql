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
