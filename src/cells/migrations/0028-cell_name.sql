-- Which cell this database is, if it is one of several: at most one row. Without it, exchanged URLs in the settings would
-- send tenants to a database that has nothing of them.
create table cell_name (
  name text not null
);
create unique index cell_name_one on cell_name ((true));
