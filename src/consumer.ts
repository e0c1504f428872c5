/** `colloquy/consumer`: session events from Kafka, each with its effect exactly once. See docs/events.md. */
export { consume, type ConsumeOptions, type Consumer } from './kafka/consumer.js';
export { type TruncatedSession } from './kafka/apply-records.js';
export { type ConsumedEvent, type UnknownEvent } from './kafka/contract.js';
export { type KafkaSettings } from './kafka/kafka-connection.js';
export { type KeyApi } from './kafka/key-ring.js';
export {
  memoryPlaces,
  type Place,
  type Places,
  postgresPlaces,
  type PostgresPlacesOptions,
} from './kafka/places.js';
