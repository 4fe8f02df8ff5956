CREATE TABLE "response_events" (
	"response_id" uuid NOT NULL,
	"sequence" integer NOT NULL,
	"sealed_events" text NOT NULL,
	"created_at" timestamp with time zone DEFAULT now() NOT NULL,
	CONSTRAINT "response_events_response_id_sequence_pk" PRIMARY KEY("response_id","sequence")
);
--> statement-breakpoint
ALTER TABLE "responses" ADD COLUMN "sealed_request" text;--> statement-breakpoint
ALTER TABLE "responses" ADD COLUMN "sent_at" timestamp with time zone;--> statement-breakpoint
ALTER TABLE "response_events" ADD CONSTRAINT "response_events_response_id_responses_id_fk" FOREIGN KEY ("response_id") REFERENCES "public"."responses"("id") ON DELETE cascade ON UPDATE no action;--> statement-breakpoint
CREATE INDEX "responses_background" ON "responses" USING btree ("id") WHERE sealed_request IS NOT NULL;