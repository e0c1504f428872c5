-- The generation of the log of which the topic was told for a lane, before anything of it was published there.
alter table relay_checkpoint add column generation integer not null default 1;
