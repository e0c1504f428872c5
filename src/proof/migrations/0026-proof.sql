-- A Merkle tree over each lane, by which can be proven what the log held at a moment. The leaf of position p is number
-- p - 1. All of it but the signatures follows from the events.

-- How far the tree of a lane is, and its hash then. Whoever goes on with it names both: of two that do, one succeeds.
create table merkle_lane (
  lane smallint primary key,
  size bigint not null,
  root bytea not null
) with (fillfactor = 50);
insert into merkle_lane select lane, 0, sha256('') from lane_ends();

-- Hashes of 32 bytes of up to 256 subtrees side by side (C2SP tlog-tiles). Only the last tile of a level ever changes.
create table merkle_tile (
  lane smallint not null,
  level smallint not null,
  index bigint not null,
  hashes bytea not null,
  primary key (lane, level, index)
);
-- Hashes cannot be compressed.
alter table merkle_tile alter hashes set storage external;

-- The keys that checkpoints are signed with. The private half is a row of data_key, wrapped by a master key. Public keys
-- are kept for as long as there is something that was signed with them.
create table notary_key (
  id text collate "C" primary key,
  name text not null,
  public_key bytea not null,
  -- The id of the row; such rows are never deleted.
  secret uuid not null,
  created_at timestamptz not null default colloquy_now(),
  retired_at timestamptz
);
-- One key signs.
create unique index notary_key_in_use on notary_key ((true)) where retired_at is null;

-- What was signed: a signed note (C2SP tlog-checkpoint) for each size of a tree at which it was signed.
create table signed_checkpoint (
  lane smallint not null,
  size bigint not null,
  note text not null,
  time timestamptz not null default colloquy_now(),
  primary key (lane, size)
);
