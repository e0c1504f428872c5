import { agoOf, timeOf } from './format.js';

/** A time as it is spoken of, with the exact one for whoever points at it. */
export const Time = ({ at }: { at: string }) => (
  <time dateTime={at} title={timeOf(at)}>
    {agoOf(at)}
  </time>
);
