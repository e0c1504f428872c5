-- The directory of cells, in the first one: in which cell a tenant lives. A tenant without an entry has nothing outside of
-- the first cell.
create table tenant_cell (
  tenant text collate "C" primary key,
  cell text not null,
  since timestamptz not null default colloquy_now()
);
