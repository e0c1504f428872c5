import { type RecordedEvent } from '../../../src/event-store/recorded-event.js';
import { LogTail } from '../../../src/event-store/log-tail.js';

const event = (lane: number, position: number): RecordedEvent => ({
  id: `${lane}-${position}`,
  type: 'Written',
  schemaVersion: 1,
  tenant: 'acme',
  streamId: 's',
  incarnation: 1,
  version: position,
  lane,
  position,
  time: '2026-11-22T10:00:00.000Z',
  actor: 'tester',
  correlationId: 'test',
  causationId: null,
  data: {},
});
const tailOf = (...positions: number[]): LogTail<RecordedEvent> => {
  const tail = new LogTail<RecordedEvent>();
  tail.enter('this run');
  for (const position of positions) tail.add(event(0, position), 10);
  return tail;
};
const positions = (events: readonly RecordedEvent[] | undefined) => events?.map(({ position }) => position);

describe('LogTail', () => {
  it('given consecutive events, when a reader is at a position among them, then it gets the events after it, up to its limit', () => {
    const tail = tailOf(5, 6, 7, 8);
    expect(positions(tail.after(0, 4, 10))).toEqual([5, 6, 7, 8]);
    expect(positions(tail.after(0, 6, 10))).toEqual([7, 8]);
    expect(positions(tail.after(0, 4, 2))).toEqual([5, 6]);
  });

  it.each([0, 3, 8, 9])(
    'given the events 5 to 8, when a reader is at position %i, then it has to read the log',
    (at) => {
      expect(tailOf(5, 6, 7, 8).after(0, at, 10)).toBeUndefined();
      expect(tailOf(5, 6, 7, 8).after(1, at, 10)).toBeUndefined();
    },
  );

  it('given another start of the server, when its events are added, then the earlier events are forgotten', () => {
    const tail = tailOf(5, 6);
    tail.enter('another run');
    tail.add(event(1, 3), 10);
    expect(tail.after(0, 4, 10)).toBeUndefined();
  });

  it('given a gap where other nodes appended, when a reader is before it, then it has to read the log', () => {
    const tail = tailOf(5, 6, 8);
    expect(tail.after(0, 5, 10)).toBeUndefined();
    expect(positions(tail.after(0, 7, 10))).toEqual([8]);
  });

  it('given positions between which all events are kept, when they are asked for, then all are given, and else none', () => {
    const tail = tailOf(5, 7, 8, 9);
    expect(positions(tail.between(0, 6, 8))).toEqual([7, 8]);
    expect(positions(tail.between(0, 6, 9))).toEqual([7, 8, 9]);
    expect(tail.between(0, 5, 8)).toBeUndefined();
    expect(tail.between(0, 6, 10)).toBeUndefined();
    expect(tail.between(1, 6, 8)).toBeUndefined();
  });

  it('given an event that is too large to be kept, when a reader is before it, then it has to read the log', () => {
    const tail = tailOf(5, 6);
    tail.add(event(0, 7), 1_000_000);
    expect(tail.after(0, 5, 10)).toBeUndefined();
    tail.add(event(0, 8), 10);
    expect(tail.after(0, 6, 10)).toBeUndefined();
    expect(positions(tail.after(0, 7, 10))).toEqual([8]);
  });

  it('given two lanes, when one is forgotten because another node appended to it, then the other one stays', () => {
    const tail = tailOf(1, 2);
    tail.add(event(1, 1), 10);
    tail.forget([0]);
    expect(tail.after(0, 0, 10)).toBeUndefined();
    expect(positions(tail.after(1, 0, 10))).toEqual([1]);
    tail.forget();
    expect(tail.after(1, 0, 10)).toBeUndefined();
  });

  it('given ever more events, when they are added, then a bounded number of the last ones is kept', () => {
    const tail = tailOf(...Array.from({ length: 10_000 }, (_, index) => index + 1));
    expect(positions(tail.after(0, 9_900, 10_000))).toHaveLength(100);
    expect(tail.after(0, 9_000, 10)).toBeUndefined();
  });
});
