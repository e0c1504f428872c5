-- A tenant has one stream of each id from '~' on, which no other stream may have: the states of all tenants under such an
-- id that were stored after a position are found without a look at any other stream. A row of one of them is seldom
-- written, so it does not matter that its updates change an indexed column.
create index stream_state_reserved on stream_state (stream_id, lane, position) where stream_id >= '~';
drop index stream_of_tenant;
