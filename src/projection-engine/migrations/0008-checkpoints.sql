-- How far each projection has come in each lane. The tables of the projections themselves are made by the projector, not
-- by migrations, because they come and go with the versions of their code.
create table projection_checkpoint (
  -- The name of the projection's table.
  projection text collate "C" not null,
  lane smallint not null,
  position bigint not null,
  -- Of the lease under which the checkpoint was last moved: an owner with an older epoch is refused.
  epoch bigint not null,
  -- Grows when somebody other than the lane's owner changed the lane's rows: what the owner computed from the rows of
  -- before is then refused, even if the position is the same.
  revision bigint not null default 0,
  primary key (projection, lane)
) with (fillfactor = 50);

-- Rebuilds that are under way.
create table projection_rebuild (
  projection text collate "C" primary key,
  -- The name of the table that is built beside the projection's.
  shadow text collate "C" not null,
  started_at timestamptz not null
);

-- Sessions that a projection cannot take in, from the first event on that it could not apply.
create table projection_parked (
  projection text collate "C" not null,
  tenant text collate "C" not null,
  session_id text collate "C" not null,
  lane smallint not null,
  version integer not null,
  error text not null,
  parked_at timestamptz not null,
  primary key (projection, tenant, session_id)
);
