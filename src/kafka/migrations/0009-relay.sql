-- How far each lane is published.
create table relay_checkpoint (
  lane smallint primary key,
  -- The last position that the brokers have acknowledged.
  position bigint not null,
  -- Grows with every claim of the lane: whoever moves the position under an older claim is refused.
  epoch bigint not null
) with (fillfactor = 50);
insert into relay_checkpoint select lane, 0, 0 from lane_ends();

-- The topic that was published to so far: one row once it is known. A session's partition follows from the count of
-- partitions, so the count may not change.
create table relay_topic (
  single boolean primary key default true check (single),
  topic text not null,
  partitions integer not null
);
