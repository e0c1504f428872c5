-- A tenant that is on its way to another cell. Changes have numbers, in the order in which they are committed, so that
-- every process finds those that it has not seen; a new entry is none, because nobody can have seen another one before.
alter table tenant_cell add column moving_to text, add column change bigint;
create index tenant_cell_changes on tenant_cell (change) where change is not null;
create sequence tenant_cell_change;
