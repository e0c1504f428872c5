-- Where the next events of a tenant's feed are. Only what the filter looks at is read here; the caller fetches the
-- page itself.
--
-- $1 tenant; $2 lanes; $3 the positions after which to begin, in step; $4 events looked at per lane, at most
-- $5 … $9 stream, types, actor, from, to: null for any; $10 the page's size
--
-- Rows: the page's events in their order; before them, for each lane that moved on, the position up to which nothing
-- is left to look at (null when it did not), and whether there may be more.
with scanned as materialized (
  select r.lane, e.position,
         -- Within a lane the position rules, also where a clock was set back.
         max(e.time) over (partition by r.lane order by e.position) as at,
         ($5::text is null or e.stream_id = $5) and ($6::text[] is null or e.type = any ($6))
           and ($7::text is null or e.actor = $7)
           and ($8::timestamptz is null or e.time >= $8) and ($9::timestamptz is null or e.time < $9) as wanted
  from unnest($2::smallint[], $3::bigint[]) as r (lane, "position")
  cross join lateral (
    select e.position, e.time, e.stream_id, e.type, e.actor from event e
    where e.lane = r.lane and e.tenant = $1 and e.position > r.position
    order by e.position limit $4
  ) e
), lanes as materialized (
  select lane, max(at) as at, count(*) = $4 as cut_off from scanned group by lane
), merged as materialized (
  -- What comes later than the last look at a lane may come later than what that lane has next.
  select * from scanned where at <= coalesce((select min(at) from lanes where cut_off), 'infinity')
), page as materialized (
  select lane, position, at, row_number() over (order by at, lane, position) as n
  from merged where wanted order by at, lane, position limit $10::integer + 1
), cut as (
  select lane, position, at from page where n = $10 and exists (select from page where n > $10)
)
select m.lane,
       max(m.position) filter (
         where c.at is null or (m.at, m.lane, m.position) <= (c.at, c.lane, c.position)
       ) as position,
       false as is_event,
       bool_or(c.at is not null) or exists (select from lanes where cut_off) as more,
       null::timestamptz as at
from merged m left join cut c on true group by m.lane
union all
select lane, position, true, false, at from page where n <= $10
order by is_event, at, lane, position
