import { generationsProjection } from './generations.projection.js';
import { historyProjection } from './history.projection.js';
import { searchProjection } from './search.projection.js';
import { sessionsProjection } from './sessions.projection.js';
import { usageProjection } from './usage.projection.js';

/** All read models: each is one file, and one entry here. */
export const projections = [
  sessionsProjection,
  historyProjection,
  usageProjection,
  searchProjection,
  generationsProjection,
];
