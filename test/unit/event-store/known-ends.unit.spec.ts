import { type Append, type StreamEnd } from '../../../src/event-store/append.js';
import { KnownEnds } from '../../../src/event-store/known-ends.js';

const RUN = 'this run';
const LANE = 3;
let now = 0;
let ends: KnownEnds;

const stream = (streamId: string) => ({ tenant: 'acme', streamId });
const append = (
  streamId: string,
  version: number,
  position: number,
  { lane = LANE, run = RUN, events = 1 } = {},
) => {
  const appended = {
    stream: stream(streamId),
    lane,
    events: Array.from({ length: events }),
  } as unknown as Append;
  ends.appended(appended, { version, position, time: `at ${position}` } as StreamEnd, run);
};
const versionOf = (streamId: string, { lane = LANE, run = RUN } = {}) =>
  ends.versionOf(stream(streamId), lane, run);

beforeEach(() => {
  now = 0;
  ends = new KnownEnds(() => now);
});

it('given appends to a lane that follow one another, when it is asked, then it knows the end of the lane and of each stream', () => {
  append('a', 4, 17);
  append('b', 1, 18);
  append('a', 6, 20, { events: 2 });
  expect(ends.endOf(LANE, RUN)).toEqual({ position: 20, time: 'at 20' });
  expect([versionOf('a'), versionOf('b'), versionOf('c')]).toEqual([6, 1, undefined]);
});

it('given a gap between two appends, when it is asked for a stream before the gap, then it does not know, because the gap may hold its next event', () => {
  append('a', 4, 17);
  append('b', 1, 19);
  expect(ends.endOf(LANE, RUN)).toEqual({ position: 19, time: 'at 19' });
  expect([versionOf('a'), versionOf('b')]).toEqual([undefined, 1]);
});

it('given lanes that are forgotten, when they are learned again, then only what was appended since is known', () => {
  append('a', 4, 17);
  append('b', 2, 5, { lane: 4 });
  ends.forget([LANE]);
  expect([ends.endOf(LANE, RUN), versionOf('a'), versionOf('b', { lane: 4 })]).toEqual([
    undefined,
    undefined,
    2,
  ]);
  append('c', 1, 18);
  expect([versionOf('a'), versionOf('c')]).toEqual([undefined, 1]);
  ends.forget();
  expect([versionOf('c'), versionOf('b', { lane: 4 })]).toEqual([undefined, undefined]);
});

it('given another start of the server, when it is asked, then nothing of the run before is known', () => {
  append('a', 4, 17);
  expect([ends.endOf(LANE, 'another run'), versionOf('a', { run: 'another run' })]).toEqual([
    undefined,
    undefined,
  ]);
  append('b', 1, 9, { lane: 4, run: 'another run' });
  expect([versionOf('a'), versionOf('a', { run: 'another run' })]).toEqual([undefined, undefined]);
  expect(versionOf('b', { lane: 4, run: 'another run' })).toBe(1);
});

it('given a lane that is distrusted, when a second has passed, and not before, then it is learned again', () => {
  append('a', 4, 17);
  ends.distrust([LANE]);
  append('a', 5, 18);
  expect([ends.endOf(LANE, RUN), versionOf('a')]).toEqual([undefined, undefined]);
  now = 1_000;
  append('a', 6, 19);
  expect(versionOf('a')).toBe(6);
});

it('given more streams than it remembers, when it is asked for the oldest, then it does not know', () => {
  for (let n = 1; n <= 20_001; n += 1) append(`s${n}`, 1, n);
  expect([versionOf('s1'), versionOf('s2'), versionOf('s20001')]).toEqual([undefined, 1, 1]);
});
