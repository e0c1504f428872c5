-- The processes that work on this log, for people. That one is alive is told by the leases of which it is the owner; nothing is
-- decided by these rows.
create table node (
  id uuid primary key,
  host text not null,
  pid integer not null,
  version text not null,
  started_at timestamptz not null default colloquy_now()
);
